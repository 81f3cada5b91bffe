"""How long a run will still take, with a range."""

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llmexp.engine import Plan, State

ROWS = 20  # that a forecast looks back on
NAMES = ("perf/eta_seconds_low", "perf/eta_seconds", "perf/eta_seconds_high")
PERCENTILES = (10, 50, 90)


class Forecast:
    """Forecasts from the pace of the last rows: as if all that is left went as one of them did.

    Seconds per step, and seconds from one validation to the next beside the steps (validation,
    samples, saves): the median of each, and the 10th and 90th percentile for the range. A run
    that stops early for want of patience takes less.
    """

    def __init__(self, plan: "Plan", state: "State") -> None:
        """Begin where `state` stands."""
        self._plan = plan
        self._began, self._trained = time.monotonic(), state.seconds
        self._step, self._seconds, self._warm = state.step, state.seconds, False
        self._validated = 0.0  # seconds beside the steps until the last validation
        self._paces: deque[float] = deque(maxlen=ROWS)  # seconds per step
        self._pauses: deque[float] = deque(maxlen=ROWS)  # seconds from validation to validation

    def row(self, state: "State", *, validated: bool) -> dict[str, float]:
        """Return the seconds left as a row is written; nothing where nothing is known or left."""
        beside = time.monotonic() - self._began - (state.seconds - self._trained)
        self._see_steps(state)
        if validated:
            if state.step:
                self._pauses.append(max(0.0, beside - self._validated))
            self._validated = beside
        left = self._plan.steps - state.step
        if not self._paces or left <= 0:
            return {}
        validations = validations_left(self._plan, state.step)
        steps, pauses = spread(self._paces), spread(self._pauses or [max(0.0, beside)])
        times = [
            left * step + validations * pause for step, pause in zip(steps, pauses, strict=True)
        ]
        return dict(zip(NAMES, times, strict=True))

    def _see_steps(self, state: "State") -> None:
        steps, seconds = state.step - self._step, state.seconds - self._seconds
        self._step, self._seconds = state.step, state.seconds
        if steps <= 0:
            return
        if self._paces and not self._warm:
            self._warm = True
            self._paces.clear()  # the first step sets things up, and says little of the others
        self._paces.append(seconds / steps)


def spread(values: Sequence[float] | deque[float]) -> list[float]:
    """Return the 10th, 50th and 90th percentile."""
    return [float(value) for value in np.percentile(list(values), PERCENTILES)]


def validations_left(plan: "Plan", step: int) -> int:
    """Return how many validations come after `step` optimizer steps (see Plan.validates_at)."""
    interval = plan.validate_every * plan.steps_per_epoch
    regular = math.floor(plan.steps / interval) - math.floor(step / interval)
    is_extra = math.floor(plan.steps / interval) == math.floor((plan.steps - 1) / interval)
    left = plan.steps - step
    return max(0, min(left, regular + is_extra))
