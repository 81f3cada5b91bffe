"""The two sides: by content and seed, stable, never sharing a text."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmexp.data import Corpus, Examples, split
from llmexp.errors import RequestError

Make = Callable[..., Corpus]
LINES = [f"line number {number}" for number in range(400)]


@pytest.fixture
def sides(
    corpus: Make, tokenizer: Any, tmp_path: Path
) -> Callable[..., tuple[list[str], list[str]]]:
    """Split lines; return the texts of both sides, in the order of the file."""

    def make(lines: list[str], **changes: Any) -> tuple[list[str], list[str]]:
        path = tmp_path / "data.txt"
        path.write_text("\n".join(lines))
        made = corpus("text", path=str(path), **changes)
        return decoded(made.train, tokenizer), decoded(made.validation, tokenizer)

    return make


def decoded(examples: Examples, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(example.input_ids[:-1]) for example in examples]


def test_the_split_is_the_fraction_asked_for(sides: Any) -> None:
    for fraction in (0.1, 0.5):
        train, validation = sides(LINES, val_size=fraction)
        assert len(train) + len(validation) == len(LINES)
        assert abs(len(validation) / len(LINES) - fraction) < 0.07


def test_no_line_changes_side_when_others_come_or_move(sides: Any) -> None:
    train, validation = sides(LINES)
    shuffled = random.Random(0).sample(LINES, len(LINES))
    assert [sorted(side) for side in sides(shuffled)] == [sorted(train), sorted(validation)]
    more = sides([*LINES, *(f"new {number}" for number in range(40))])
    assert set(train) <= set(more[0])
    assert set(validation) <= set(more[1])


def test_equal_lines_never_cross(sides: Any) -> None:
    nearly = [f" {line}  " for line in LINES]  # white space around makes no other text
    train, validation = sides([*LINES, *nearly, *LINES])
    assert not {text.strip() for text in train} & {text.strip() for text in validation}


def test_the_seed_chooses_another_split(sides: Any) -> None:
    assert sides(LINES, seed=1) == sides(LINES, seed=1) != sides(LINES, seed=2)


def test_two_lines_make_two_sides(sides: Any) -> None:
    for val_size in (0.01, 0.99):
        for seed in range(5):
            train, validation = sides(["one", "two"], seed=seed, val_size=val_size)
            assert len(train) == len(validation) == 1


def test_one_text_many_times_is_refused(sides: Any) -> None:
    with pytest.raises(RequestError, match="3 examples hold one distinct text"):
        sides(["one", "one ", " one"])


def test_duplicates_are_counted_and_can_be_dropped(
    corpus: Make, sides: Any, tmp_path: Path
) -> None:
    lines = [*LINES, *LINES[:50], *LINES[:50], "cafe\u0301 au lait", "caf\u00e9 au lait"]
    sides(lines)
    path = str(tmp_path / "data.txt")
    assert corpus("text", path=path).report.duplicates == 101
    train, validation = sides(lines, duplicates="drop")
    assert sorted(train + validation) == sorted([*LINES, "cafe\u0301 au lait"])


def test_an_explicit_file_wins_and_its_overlap_is_said(
    corpus: Make, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "train.txt").write_text("\n".join(LINES))
    (tmp_path / "val.txt").write_text("\n".join([*LINES[:3], "unseen", "unknown"]))
    made = corpus(
        "text", path=str(tmp_path / "train.txt"), validation_path=str(tmp_path / "val.txt")
    )
    assert decoded(made.train, tokenizer) == LINES
    assert decoded(made.validation, tokenizer) == [*LINES[:3], "unseen", "unknown"]
    assert made.report.overlap == 3
    assert any("3 validation examples are in the training data" in w for w in made.report.warnings)


def test_duplicates_and_overlap_are_found_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 3000, (2, 5000)).astype(np.uint64)
    one.tofile(tmp_path / "one")
    other.tofile(tmp_path / "other")
    monkeypatch.setattr(split, "BLOCK", 512)
    monkeypatch.setattr(split, "PART", 700)
    found = np.concatenate(list(split.duplicates(tmp_path / "one")))
    firsts = np.unique(one, return_index=True)[1]
    assert np.array_equal(np.sort(found), np.setdiff1d(np.arange(5000), firsts))
    assert split.overlap(tmp_path / "one", tmp_path / "other") == int(np.isin(one, other).sum())


def test_long_examples_are_cut_without_losing_a_label(
    corpus: Make, tokenizer: Any, tmp_path: Path
) -> None:
    lines = [f"{number} " + "the rate " * (number % 40) for number in range(100)]
    (tmp_path / "data.txt").write_text("\n".join(lines))
    path = str(tmp_path / "data.txt")
    whole = corpus("text", path=path, max_length=4096)
    cut = corpus("text", path=path, max_length=16)
    assert max(len(example.input_ids) for example in cut.train) == 17

    def labels(examples: Examples) -> list[int]:
        return [token for example in examples for token in example.input_ids[1:].tolist()]

    assert labels(whole.train) == labels(cut.train)
    assert cut.report.train.overlong > 0
    assert len(cut.train) > len(whole.train) == cut.report.train.documents
    truncated = corpus("text", path=path, max_length=16, overlong="truncate")
    assert [e.input_ids.tolist() for e in truncated.train] == [
        e.input_ids[:17].tolist() for e in whole.train
    ]
    with pytest.raises(RequestError, match="longer than data.max_length=16.*overlong=split"):
        corpus("text", path=path, max_length=16, overlong="error")


def test_pieces_without_a_label_are_left_out_and_said(
    corpus: Make, tokenizer: Any, tmp_path: Path
) -> None:
    prompt = "the quick brown fox " * 20
    path = tmp_path / "data.jsonl"
    path.write_text(
        "".join(f'{{"prompt": "{prompt} {n}", "completion": "{n}"}}\n' for n in range(40))
    )
    whole = corpus("jsonl", path=str(path), max_length=4096)
    cut = corpus("jsonl", path=str(path), max_length=16)
    labels = [
        sum(int(example.loss_mask[1:].sum()) for example in made.train) for made in (whole, cut)
    ]
    assert labels[0] == labels[1] == cut.report.train.label_tokens
    assert cut.report.train.unlabelled > 0
    assert any("no label token" in line for line in cut.report.warnings)
    with pytest.raises(RequestError, match="no label token within data.max_length=16"):
        corpus("jsonl", path=str(path), max_length=16, overlong="truncate")


def test_blocks_are_full_and_hold_every_token_of_their_side(
    corpus: Make, tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data.txt"
    path.write_text("\n".join(LINES))
    lines, blocks = (
        corpus("text", path=str(path), unit=u, max_length=32) for u in ("example", "block")
    )
    for one, other in ((lines.train, blocks.train), (lines.validation, blocks.validation)):
        text = np.concatenate([example.input_ids for example in one])
        assert {len(example.input_ids) for example in list(other)[:-1]} == {33}
        assert np.array_equal(np.concatenate([e.input_ids[1:] for e in other]), text[1:])
        assert np.array_equal(np.concatenate([e.input_ids[:-1] for e in other]), text[:-1])
