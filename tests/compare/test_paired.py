"""Is B better than A? The interval covers the truth as often as it says, and says nothing of
strangers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmexp import durable, validation
from llmexp.compare.paired import FEW, Interval, compared, sentence

Losses = Callable[..., Any]


def test_a_difference_is_found_where_there_is_one(losses_of: Losses) -> None:
    found = compared(losses_of(0.0, seed=1), losses_of(-0.05, seed=2))
    assert isinstance(found, Interval)
    assert found.low < -0.05 < found.high < 0
    assert found.examples == 200
    said = sentence("a", "b", found)
    assert re.match(r"b is better than a by 0.0\d+ nats per token, 95 % interval \[0.0", said)


def test_what_is_the_same_cannot_be_told_apart(losses_of: Losses) -> None:
    found = compared(losses_of(0.0, seed=1), losses_of(0.0, seed=2))
    assert isinstance(found, Interval)
    assert not found.decided
    assert "cannot be told apart" in sentence("a", "b", found)


def test_it_is_antisymmetric_and_the_same_each_time(losses_of: Losses) -> None:
    a, b = losses_of(0.0, seed=1), losses_of(-0.02, seed=2)
    one, other = compared(a, b), compared(b, a)
    assert isinstance(one, Interval) and isinstance(other, Interval)
    assert one == compared(a, b)
    assert np.allclose([one.low, one.high], [-other.high, -other.low])


def test_the_difference_is_that_of_the_validation_losses(losses_of: Losses) -> None:
    a, b = losses_of(0.0, seed=1), losses_of(0.3, seed=2)
    found = compared(a, b)
    assert isinstance(found, Interval)
    assert abs(found.difference - (b.loss - a.loss)) < 1e-6


def test_examples_are_paired_wherever_they_stand(losses_of: Losses) -> None:
    a, b = losses_of(0.0, seed=1), losses_of(-0.05, seed=2)
    order = np.random.default_rng(0).permutation(200)
    mixed = validation.Losses(b.keys[order], b.tokens[order], b.best[order], b.last[order])
    assert compared(a, mixed) == compared(a, b)


def test_only_common_examples_count(losses_of: Losses) -> None:
    a, b = losses_of(0.0, count=100), losses_of(0.0, count=100, first=60)
    found = compared(a, b)
    assert isinstance(found, Interval) and found.examples == 40
    few = compared(a, losses_of(0.0, count=100, first=100 - FEW + 1))
    assert few == FEW - 1
    assert f"validated on {FEW - 1} examples in common" in sentence("a", "b", few)


@pytest.mark.parametrize(("count", "least"), [(30, 0.90), (80, 0.90)])
def test_the_interval_covers_the_truth_in_95_of_100_cases(count: int, least: float) -> None:
    chance, hits, cases = np.random.default_rng(3), 0, 200
    for _ in range(cases):
        tokens = chance.integers(5, 60, count)
        each = chance.gamma(1.0, 0.2, count) - 0.2 + 0.03  # skewed, 0.03 nats on average
        a = np.zeros(count, np.float32)
        keys = np.arange(count)
        made = [validation.Losses(keys, tokens, n, n) for n in (a, (each * tokens).astype("f4"))]
        found = compared(*made, seed=int(chance.integers(1 << 30)))
        assert isinstance(found, Interval)
        hits += found.low <= 0.03 <= found.high
    assert least <= hits / cases <= 0.985


def test_losses_come_back_as_they_were_written(tmp_path: Path, losses_of: Losses) -> None:
    losses = losses_of(0.0)
    validation.write(tmp_path, losses)
    first = (tmp_path / validation.FILE).read_bytes()
    validation.write(tmp_path, losses)
    assert (tmp_path / validation.FILE).read_bytes() == first
    read = validation.read(tmp_path)
    assert read is not None
    for name in ("keys", "tokens", "best", "last"):
        assert np.array_equal(getattr(read, name), getattr(losses, name))
    assert len(first) < 30 * 200 + 400


def test_what_is_no_such_file_reads_as_none(tmp_path: Path) -> None:
    assert validation.read(tmp_path) is None
    for damaged in (b"", b"nonsense", b"\xff" * 100):
        durable.write_bytes(tmp_path / validation.FILE, damaged)
        assert validation.read(tmp_path) is None


def test_keys_name_tokens_and_labels(tmp_path: Path) -> None:
    from llmexp.data.examples import RANGE, Examples
    from llmexp.data.store import Mapped

    def mapped(name: str, values: Any) -> Mapped:
        (tmp_path / name).write_bytes(values.tobytes())
        return Mapped(tmp_path / name, values.dtype)

    ids = mapped("ids", np.array([1, 2, 3, 1, 2, 3, 1, 2, 4], np.uint16))
    ranges = mapped("ranges", np.array([(0, 3), (3, 3), (6, 3)], RANGE))
    same = validation.keys_of(Examples(ids, ranges, None))
    assert same[0] == same[1] != same[2]
    mask = mapped("mask", np.array([1, 1, 1, 1, 0, 1, 1, 1, 1], bool))
    other = validation.keys_of(Examples(ids, ranges, mask))
    assert other[0] == same[0] != other[1]
