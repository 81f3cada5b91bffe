"""A long run costs the doctor no more than a short one, and is judged by the same rules."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from llmexp.doctor import About, Doctor, curves, diagnose
from llmexp.doctor.rows import MOST, Rows


def row(step: int, **more: Any) -> dict[str, Any]:
    return {
        "train/global_step": step,
        "train/loss": 3.0 + step / 7,
        "train/tokens": 90 * step,
    } | more


def kept(steps: range, validated: Callable[[int], bool]) -> list[dict[str, Any]]:
    rows = Rows()
    for step in steps:
        rows.append(row(step, **{"eval/loss": 1.0} if validated(step) else {}))
    return [dict(one) for one in rows]


def test_what_is_kept_does_not_grow_with_the_run() -> None:
    doctor = Doctor(About())
    sizes = []
    tracemalloc.start()
    for step in range(1, 30_001):
        doctor.see(row(step), row(step, **{"perf/tokens_per_second": step / 3}))
        if step in (10_000, 20_000, 30_000):
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(sizes) < 4 * MOST * 1500 and max(sizes) < 2.2 * min(sizes)
    seen = doctor.curves()
    assert len(seen.step) <= MOST + 1 and seen.step[0] == 1 and seen.last_step == 30_000


@pytest.mark.parametrize("count", [1, MOST - 1, MOST, MOST + 1, 3 * MOST + 5, 20 * MOST])
def test_first_newest_and_validations_stay_and_the_others_lie_evenly(count: int) -> None:
    rows = kept(range(count), lambda step: step % 1000 == 7)
    steps = [one["train/global_step"] for one in rows]
    assert steps[0] == 0 and steps[-1] == count - 1 and steps == sorted(set(steps))
    assert [one["train/global_step"] for one in rows if "eval/loss" in one] == list(
        range(7, count, 1000)
    )
    even = [step for step in steps if step % 1000 != 7 and step != count - 1]
    assert count <= MOST or len({b - a for a, b in zip(even, even[1:], strict=False)}) <= 2
    assert len(rows) >= min(count, MOST // 2)


def test_validations_alone_may_be_more() -> None:
    assert len(kept(range(3 * MOST), lambda step: True)) == 3 * MOST


def test_the_loss_between_validations_is_that_of_all_rows() -> None:
    rows = [row(step, **{"eval/loss": 1.0} if step % 2000 == 0 else {}) for step in range(1, 8001)]
    thinned = Rows()
    for one in rows:
        thinned.append(one)
    whole, part = curves(rows, []), curves(thinned, [])
    assert part.train_before == pytest.approx(whole.train_before, rel=0.01)


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"train": lambda done: 6 + 3 * done},
        {"train": lambda done: 6.0},
        {"norm": lambda done: 30.0},
        {"norm": lambda done: 1.0 if done < 0.3 else 1e-9},
        {"rate": lambda done: done * 1e-3},
        {"waits": 0.6},
        {"peak": 11.9, "pace": lambda done: 1000 if done < 0.5 else 200},
    ],
)
def test_a_long_run_is_judged_as_by_all_its_rows(
    made: dict[str, Any], story: Callable[..., Any]
) -> None:
    told = story(**made, steps=30 * MOST)
    doctor = Doctor(told.about)
    for metrics, timing in zip(told.metrics, told.timing, strict=True):
        doctor.see(metrics, timing)
    assert len(doctor.curves().step) < len(told.metrics) / 2
    found = [finding.name for finding in diagnose(doctor.curves(), told.about)]
    assert found == told.names()
