"""What a trial came to: its state, its best loss, and what the best ones say about the search."""

import math
from collections.abc import Sequence

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from llmexp.sweep.space import Space

PLAIN = {"complete": "finished", "fail": "failed"}  # where somebody else told the end
ENOUGH = 8  # finished trials, below which their scatter says nothing


def state(trial: FrozenTrial) -> str:
    """Return finished, pruned, infeasible, refused, failed, running or waiting."""
    name = trial.state.name.lower()
    return str(trial.user_attrs.get("state", PLAIN.get(name, name)))


def best_loss(trial: FrozenTrial) -> float | None:
    """Return the best validation loss of a trial, as far as it came, in nats per token."""
    losses = [*trial.intermediate_values.values()]
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        losses.append(trial.value)
    return min(losses, default=None)


def ranking(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the finished trials, the best first."""
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(finished, key=lambda trial: (trial.value, trial.number))


def describe(trial: FrozenTrial) -> str:
    """Return how a trial ended, in a few words."""
    best = best_loss(trial)
    words = [state(trial), f"eval/loss {best:.4f}" if best is not None else "no loss"]
    if trial.duration is not None:
        words.append(f"{trial.duration.total_seconds():.1f} s")
    return ", ".join([*words, *map(str, filter(None, [trial.user_attrs.get("error")]))])


def warnings(trials: Sequence[FrozenTrial], space: Space) -> list[str]:
    """Return why the winner may not be one: it lies at an edge of the space, or leads by chance."""
    ranked = ranking(trials)
    return [*_edges(ranked[0], space), *_close_calls(ranked)] if ranked else []


def _edges(best: FrozenTrial, space: Space) -> list[str]:
    found = []
    for key, distribution in space.searched.items():
        position = _position(distribution, best.params[key])
        if position is not None and not 0.1 <= position <= 0.9:
            side = "lower" if position < 0.5 else "upper"
            found.append(
                f"The best {key}={best.params[key]:.4g} lies at the {side} edge of what was "
                "searched, and the optimum may lie beyond it: move the range, under a new name."
            )
    return found


def _position(distribution: object, value: float) -> float | None:
    """Return where a value lies between the ends of its range, 0 to 1; None: there is no order."""
    if isinstance(distribution, CategoricalDistribution):
        choices = [c for c in distribution.choices if isinstance(c, int | float) and c is not True]
        if len(choices) < 3 or len(choices) < len(distribution.choices):
            return None
        return sorted(choices).index(value) / (len(choices) - 1)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    scale = math.log if distribution.log else float
    low, high = scale(distribution.low), scale(distribution.high)
    return (scale(value) - low) / (high - low)


def _close_calls(ranked: list[FrozenTrial]) -> list[str]:
    scatter = noise(ranked)
    if scatter is None or len(ranked) < 2:
        return []
    first, second = ranked[0], ranked[1]
    assert first.value is not None and second.value is not None
    margin = second.value - first.value
    if margin >= scatter:
        return []
    return [
        f"Trial {first.number} leads trial {second.number} by {margin:.2g} nats, and neighbouring "
        f"trials scatter by {scatter:.2g}: that may be the seed. hydra.sweeper.confirm=3 repeats "
        "the top three with three seeds each."
    ]


def noise(ranked: list[FrozenTrial]) -> float | None:
    """Return how far the better half of the trials scatters around a smooth curve, in nats.

    The curve is a parabola in the logarithm of each number and an offset for each other choice.
    What it does not explain is noise, or finer structure than so few trials can show: an upper
    bound.
    """
    half = ranked[: max(ENOUGH, len(ranked) // 2)]
    if len(half) < ENOUGH:
        return None
    columns = [np.ones(len(half))]
    for key in half[0].params:
        values = [trial.params[key] for trial in half]
        if all(isinstance(v, int | float) and v > 0 for v in values):
            x = np.log(np.array(values, dtype=float))
            x = (x - x.mean()) / (x.std() or 1.0)
            columns += [x, x * x]
        else:
            columns += [np.array([v == one for v in values], float) for one in sorted(set(values))]
    design = np.stack(columns, axis=1)
    losses = np.array([trial.value for trial in half])
    solution, _, rank, _ = np.linalg.lstsq(design, losses, rcond=None)
    free = len(half) - int(rank)
    residual = losses - design @ solution
    return float(math.sqrt((residual @ residual) / free)) if free > 0 else None
