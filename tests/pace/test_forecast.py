"""How long it will still take: what is left goes as the last rows did."""

import itertools
from types import SimpleNamespace

import pytest

from llmexp import forecast
from llmexp.engine import Plan, State
from llmexp.forecast import NAMES, Forecast, validations_left


class Clock:
    """A wall clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(forecast, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def trained(clock: Clock, state: State, *, steps: int, seconds: float) -> State:
    """Return where a run stands some steps later."""
    clock.now += seconds
    return State(step=state.step + steps, seconds=state.seconds + seconds)


@pytest.mark.parametrize("step", [0, 70])  # a fresh run, a resumed one
def test_a_steady_pace_leaves_no_doubt(clock: Clock, step: int) -> None:
    state = State(step=step, seconds=3.0 * step)
    seen = Forecast(Plan(10, steps=step + 40, steps_per_epoch=1000), state)
    for _ in range(3):
        state = trained(clock, state, steps=10, seconds=20)
        row = seen.row(state, validated=False)
    assert [row[name] for name in NAMES] == pytest.approx([20.0] * 3)


def test_the_range_is_that_of_the_rows(clock: Clock) -> None:
    state = State()
    seen = Forecast(Plan(10, steps=210, steps_per_epoch=1000), state)
    state = trained(clock, state, steps=1, seconds=100)  # the first step sets things up
    assert seen.row(state, validated=False)
    for seconds in range(10, 21):
        state = trained(clock, state, steps=10, seconds=seconds)
        row = seen.row(state, validated=False)
    left = 210 - state.step
    assert [row[name] / left for name in NAMES] == pytest.approx([1.1, 1.5, 1.9])


def test_what_is_long_ago_is_forgotten(clock: Clock) -> None:
    state = State()
    seen = Forecast(Plan(10, steps=1000, steps_per_epoch=5000), state)
    for row_number in range(60):
        state = trained(clock, state, steps=10, seconds=50 if row_number < 30 else 10)
        row = seen.row(state, validated=False)
    assert row[NAMES[2]] == pytest.approx(400)


def test_validations_and_saves_take_their_time(clock: Clock) -> None:
    state = State()
    seen = Forecast(Plan(10, steps=50, steps_per_epoch=10), state)
    clock.now += 7
    seen.row(state, validated=True)  # before training
    for save in (3, 3, 5):
        clock.now += save  # samples, weights: after the row of a validation
        state = trained(clock, state, steps=5, seconds=5)
        seen.row(state, validated=False)
        state = trained(clock, state, steps=5, seconds=5)
        clock.now += 7
        row = seen.row(state, validated=True)
    assert [row[name] for name in NAMES] == pytest.approx([20 + 2 * p for p in (10, 10, 11.6)])


def test_at_the_end_nothing_is_left_and_nothing_is_known_before_the_first_step(
    clock: Clock,
) -> None:
    seen = Forecast(Plan(10, steps=10, steps_per_epoch=10), State())
    assert seen.row(State(), validated=True) == {}
    assert seen.row(trained(clock, State(), steps=10, seconds=1), validated=True) == {}


def test_the_validations_left_are_those_of_the_plan() -> None:
    for steps, per_epoch, every in itertools.product((1, 7, 20), (1, 3, 10), (0.05, 0.3, 1, 1.5)):
        plan = Plan(1, steps=steps, steps_per_epoch=per_epoch, validate_every=every)
        for step in range(steps + 1):
            expected = sum(plan.validates_at(later) for later in range(step + 1, steps + 1))
            assert validations_left(plan, step) == expected, (plan, step)
