"""The data report: what a person reads before the first step, and what a wrong request is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmexp.data import Corpus, Source
from llmexp.data.batches import Batch
from llmexp.data.report import padding_of
from llmexp.errors import RequestError

Make = Callable[..., Corpus]
CONF = Path(__file__).resolve().parents[2] / "conf" / "data"


def test_the_sample_needs_nothing_and_warns_of_nothing(corpus: Make) -> None:
    made = corpus("sample", batch_size=16)
    assert made.report.train.documents + made.report.validation.documents >= 1000
    assert made.report.duplicates == made.report.overlap == 0
    assert made.report.warnings == []


def test_the_numbers_are_those_of_the_examples(corpus: Make, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("".join("the learning rate " * (n % 30) + f"{n}\n" for n in range(300)))
    made = corpus("text", path=str(path), max_length=64, batch_size=8)
    train = made.report.train
    assert train.examples == len(made.train)
    assert train.label_tokens == sum(int(e.loss_mask[1:].sum()) for e in made.train)
    assert train.tokens == train.label_tokens + train.documents
    assert sum(train.histogram) == train.documents
    assert made.report.validation.examples == len(made.validation)
    assert made.report.stops == 300
    numbers = made.report.as_dict()
    assert numbers["train_examples"] == len(made.train)
    assert json.loads(json.dumps(numbers)) == numbers
    text = "\n".join(made.report.lines())
    for told in ("examples", "tokens", "length", "over-long", "padding", "duplicates", "overlap"):
        assert told in text


def test_padding_is_what_a_step_would_compute(corpus: Make) -> None:
    train = corpus("sample", max_length=512).train
    measured = padding_of(train, batch_size=len(train), max_length=512)
    lengths = train.lengths(np.arange(len(train))) - 1
    step = Batch(train, np.arange(len(train)), max_length=512, pack=True)
    computed = sum(rows.input_ids.numel() for rows in step.micro_batches(8))
    assert measured.to_max_length == 1 - lengths.sum() / (512 * len(train))
    assert measured.to_longest == 1 - lengths.sum() / (lengths.max() * len(train))
    assert measured.packed == 1 - lengths.sum() / computed
    assert measured.packed < 0.05 < measured.to_longest < measured.to_max_length


def test_the_preview_shows_what_is_masked(corpus: Make, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        "".join(f'{{"prompt": "say\\u001b {n}", "completion": "{n}"}}\n' for n in range(9))
    )
    report = corpus("jsonl", path=str(path), validation_path=str(path)).report
    lines = report.lines()
    start = lines.index("example 1     masked  'say\\x1b 0\\n'")
    assert lines[start + 1] == "              trained '0<|endoftext|>'"
    assert lines[start + 2].startswith("example 2     masked")


def test_few_examples_are_warned_of_with_the_reason(corpus: Make, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("".join(f"line {number}\n" for number in range(200)))
    made = corpus("text", path=str(path))
    assert "few (under 1,000): the model will learn them by heart" in made.report.warnings[0]


def test_end_of_text_that_is_not_trained_is_said(corpus: Make, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    turns = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    path.write_text((json.dumps({"messages": turns}) + "\n") * 3)
    made = corpus("jsonl", path=str(path), validation_path=str(path))
    assert "it is trained in 0 of 6" in "\n".join(made.report.lines())


def test_fewer_examples_than_a_step_needs_are_refused(corpus: Make, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("".join(f"line {number}\n" for number in range(12)))
    with pytest.raises(RequestError, match="do not fill one step of train.batch_size=16"):
        corpus("text", path=str(path), batch_size=16)
    assert len(corpus("text", path=str(path), batch_size=4).train) >= 4


def test_every_mistake_is_told_at_once(source: Callable[..., Source], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(RequestError) as told:
        source(
            "text",
            path=["missing.txt", f"{tmp_path}/empty.txt", f"{tmp_path}", f"{tmp_path}/*.md"],
            validation_path="x" * 5000,
            example="page",
            unit="row",
            max_length=0,
            val_size=1.5,
            overlong="drop",
            duplicates="keep",
            loss_on="prompt",
            encoding_errors="ignore",
            columns={"texts": "text"},
        )
    lines = str(told.value).splitlines()
    for expected in (
        "data.path=missing.txt does not exist: ",
        f"data.path={tmp_path}/empty.txt is empty (0 bytes)",
        f"data.path={tmp_path} is a folder: name its files, for example ",
        f"data.path={tmp_path}/*.md matches no file",
        "data.validation_path=xxx",
        "data.example=page does not exist: choose line or paragraph or file",
        "data.unit=row",
        "data.max_length=0",
        "data.val_size=1.5",
        "data.overlong=drop",
        "data.duplicates=keep",
        "data.loss_on=prompt",
        "data.encoding_errors=ignore",
        "data.columns.texts does not exist",
    ):
        assert any(expected in line for line in lines), expected


@pytest.mark.parametrize("option", ["text", "jsonl", "csv", "parquet", "hf"])
def test_a_source_without_a_path_says_which_key_is_missing(
    source: Callable[..., Source], option: str
) -> None:
    with pytest.raises(RequestError, match=f"data.path is not set: data={option} needs data.path"):
        source(option)


def test_all_options_of_the_group_have_the_same_keys() -> None:
    from omegaconf import OmegaConf

    pages = {path.stem: OmegaConf.load(path) for path in CONF.glob("*.yaml")}
    assert set(pages) == {"sample", "text", "jsonl", "csv", "parquet", "hf"}
    assert len({tuple(page) for page in pages.values()}) == 1
    assert all(page.name == page.format == name for name, page in pages.items())


def test_nothing_heavy_is_imported_with_the_request() -> None:
    import subprocess
    import sys

    heavy = ("torch", "transformers", "tokenizers", "datasets", "pyarrow", "tqdm")
    code = f"import sys, llmexp.data; print([m for m in {heavy} if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_a_tokenizer_without_an_end_is_refused(corpus: Make, tokenizer: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(RequestError, match="no end-of-text token"):
        corpus("sample", using=endless)
