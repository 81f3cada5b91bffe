"""Is B better than A? The losses of the same validation examples, compared pair by pair."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from llmexp.validation import Losses

FEW = 20  # common examples, below which nothing is said
DRAWS = (1_000, 10_000)  # resamplings: at least, at most
WORK = 20_000_000  # examples drawn in all, between the two
BLOCK = 1_000_000  # examples drawn at once
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """What run B's loss minus run A's may be, in nats per label token."""

    difference: float
    low: float
    high: float
    examples: int  # that both validated on
    tokens: int

    @property
    def decided(self) -> bool:
        """Say whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def compared(a: Losses, b: Losses, *, seed: int = 0) -> Interval | int:
    """Return the paired bootstrap interval of b's loss minus a's, each at its best.

    Examples are drawn with replacement (Efron 1979), differences summed and divided by the label
    tokens drawn; the percentiles are widened for few examples as in Hesterberg 2015, The American
    Statistician 69(4), "expanded percentile". An int: only so many examples in common, too few.
    """
    _, left, right = np.intersect1d(a.keys, b.keys, return_indices=True)
    count = len(left)
    if count < FEW:
        return count
    nats = b.best[right].astype(np.float64) - a.best[left].astype(np.float64)
    tokens = a.tokens[left].astype(np.float64)
    if not np.isfinite(nats).all():
        return 0
    draws = int(np.clip(WORK // count, *DRAWS))
    chance = np.random.default_rng(seed)
    found: list[float] = []
    while len(found) < draws:
        drawn = chance.integers(count, size=(min(max(1, BLOCK // count), draws), count))
        found += (nats[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)).tolist()
    tail = NormalDist().cdf(-expanded(count))
    low, high = np.quantile(found[:draws], [tail, 1 - tail])
    return Interval(
        difference=float(nats.sum() / tokens.sum()),
        low=float(low),
        high=float(high),
        examples=count,
        tokens=int(tokens.sum()),
    )


def expanded(count: int) -> float:
    """Return how many standard deviations of the draws the interval reaches to each side."""
    z, free = NormalDist().inv_cdf(0.5 + LEVEL / 2), count - 1
    student = z * (1 + (z * z + 1) / (4 * free))  # Student's t, its first term (Fisher 1925)
    return student * math.sqrt(count / free)


def sentence(a: str, b: str, found: Interval | int) -> str:
    """Say what the comparison of runs `a` and `b` came to."""
    if isinstance(found, int):
        return (
            f"{b} and {a} validated on {found} examples in common, fewer than the {FEW} it takes "
            "to compare them: other data, seed, data.val_size, data.max_length or tokenizer"
        )
    better, worse = (b, a) if found.difference < 0 else (a, b)
    low, high = sorted((abs(found.low), abs(found.high)))
    on = f"on {found.examples:,} common examples"
    if found.decided:
        return (
            f"{better} is better than {worse} by {abs(found.difference):.3g} nats per token, "
            f"95 % interval [{low:.3g}, {high:.3g}], {on}"
        )
    return (
        f"{b} and {a} cannot be told apart: {found.difference:+.3g} nats per token, "
        f"95 % interval [{found.low:+.3g}, {found.high:+.3g}], {on}"
    )
