"""Learning-rate schedules: pure functions of the optimizer step, so a resumed run needs no
scheduler state.

`step` counts from 0, `total` is the number of steps of the run; the result multiplies the peak
learning rate. Every schedule begins above zero, so that the first step learns.
"""

import math


def steps_of(amount: float, total: int) -> int:
    """Read `amount`: below 1 a fraction of the run, from 1 on a number of steps."""
    return round(amount * total) if amount < 1 else int(amount)


def _warmup(step: int, total: int, warmup: float) -> tuple[float, float]:
    """Return the warm-up's multiplier, and how much of the rest of the run is done, in [0, 1)."""
    rising = steps_of(warmup, total)
    if step < rising:
        return (step + 1) / rising, 0.0
    return 1.0, (step - rising) / max(1, total - rising)


def constant(step: int, total: int, *, warmup: float) -> float:
    """Hold the peak after the warm-up."""
    return _warmup(step, total, warmup)[0]


def linear(step: int, total: int, *, warmup: float, floor: float) -> float:
    """Fall linearly from the peak to `floor` after the warm-up."""
    rise, progress = _warmup(step, total, warmup)
    return rise * (1 - (1 - floor) * progress)


def cosine(step: int, total: int, *, warmup: float, floor: float) -> float:
    """Fall along half a cosine to `floor` after the warm-up (https://arxiv.org/abs/1608.03983)."""
    rise, progress = _warmup(step, total, warmup)
    return rise * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def wsd(step: int, total: int, *, warmup: float, decay: float, floor: float) -> float:
    """Warm up, stay, and fall linearly over the last `decay` (https://arxiv.org/abs/2404.06395)."""
    rise, _ = _warmup(step, total, warmup)
    falling = steps_of(decay, total)
    progress = max(0, step - (total - falling)) / max(1, falling)
    return rise * (1 - (1 - floor) * progress)
