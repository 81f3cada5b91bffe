"""What a real run keeps of its validation examples, and what that is good for."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from llmexp import durable, job, request, validation
from llmexp.compare import runs, table
from llmexp.compare.paired import Interval
from llmexp.sweep.trial import NullTrial

LINES = [f"{who} {does} {what}." for who in "abcdefgh" for does in "pqrs" for what in "uvwxyz"]
SMALL = (
    "model.architecture={n_layer:1,n_head:2,n_embd:16,n_positions:64,vocab_size:320}",
    *("data=text", "data.path=lines.txt", "data.max_length=32", "data.cache_dir=cache"),
    *("data.val_size=0.2", "samples.prompts=[a]", "samples.max_new_tokens=4"),
    *("logger=none", "hw=cpu", "precision=fp32", "train.max_steps=30", "train.validate_every=0.5"),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two runs that differ in their learning rate, and one that differs in its cut."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(tmp_path_factory.mktemp("kept"))
    Path("lines.txt").write_text("\n".join(LINES))
    made = []
    for name, *given in (
        ("low", "optimizer.lr=1e-3"),
        ("high", "optimizer.lr=3e-2"),
        ("cut", "optimizer.lr=3e-2", "train.micro_batch_size=1", "data.pack=false"),
    ):
        line = [*SMALL, f"run.name={name}", *given]
        with initialize_config_dir(str(request.CONF), version_base="1.3"):
            settings = request.resolved(compose("train", line))
        made.append(Path.cwd() / "outputs" / name)
        job.train(settings, made[-1], line, NullTrial())
    monkeypatch.undo()
    return made


def kept(folder: Path) -> Any:
    found = validation.read(folder)
    assert found is not None
    return found


def test_the_losses_add_up_to_those_in_metrics(folders: list[Path]) -> None:
    for folder in folders:
        rows, _ = durable.read_lines(folder / "metrics.jsonl")
        losses = [row["eval/loss"] for row in rows if "eval/loss" in row]
        found = kept(folder)
        assert found.loss == pytest.approx(min(losses), rel=1e-6)
        last = found.last.sum(dtype=np.float64) / found.tokens.sum()
        assert last == pytest.approx(losses[-1], rel=1e-6)


def test_they_do_not_depend_on_how_the_set_is_cut(folders: list[Path]) -> None:
    _, high, cut = map(kept, folders)
    assert np.array_equal(high.keys, cut.keys)
    assert np.array_equal(high.tokens, cut.tokens)
    assert np.allclose(high.best, cut.best, rtol=1e-3)


def test_compare_says_who_is_better(folders: list[Path]) -> None:
    told = table.comparison(runs.read(folders))
    low = next(pair for a, _, pair in told.pairs if a.name == "low")
    assert isinstance(low, Interval) and low.low < low.high < 0
    assert "is better than low by" in table.text(told)


def test_timing_says_how_long_training_waits_for_examples(folders: list[Path]) -> None:
    rows, _ = durable.read_lines(folders[0] / "timing.jsonl")
    shares = [row["perf/data_share"] for row in rows if "perf/data_share" in row]
    assert shares and all(0 < share < 1 and math.isfinite(share) for share in shares)
