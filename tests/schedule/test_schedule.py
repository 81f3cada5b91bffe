from functools import partial

import pytest

from llmexp import schedule

SCHEDULES = {
    "constant": partial(schedule.constant, warmup=0.1),
    "linear": partial(schedule.linear, warmup=0.1, floor=0.0),
    "cosine": partial(schedule.cosine, warmup=0.1, floor=0.0),
    "wsd": partial(schedule.wsd, warmup=0.1, decay=0.2, floor=0.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 10, 1000])
def test_every_step_learns_and_none_exceeds_the_peak(name: str, total: int) -> None:
    values = [SCHEDULES[name](step, total) for step in range(total)]
    assert all(0 < value <= 1 for value in values)
    assert max(values) == 1


def test_warmup_is_a_fraction_below_one_and_steps_from_one_on() -> None:
    assert [schedule.constant(step, 100, warmup=0.04) for step in range(5)] == [
        0.25,
        0.5,
        0.75,
        1,
        1,
    ]
    assert [schedule.constant(step, 100, warmup=4) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(("name", "halfway"), [("linear", 0.5), ("cosine", 0.5), ("wsd", 1.0)])
def test_shape_halfway_after_the_warmup(name: str, halfway: float) -> None:
    assert SCHEDULES[name](550, 1000) == pytest.approx(halfway)


def test_the_floor_is_where_a_decay_ends() -> None:
    last = [
        schedule.linear(999, 1000, warmup=0, floor=0.1),
        schedule.cosine(999, 1000, warmup=0, floor=0.1),
        schedule.wsd(999, 1000, warmup=0, decay=0.2, floor=0.1),
    ]
    assert last == pytest.approx([0.1, 0.1, 0.1], abs=0.01)
