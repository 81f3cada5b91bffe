"""Was it the seed? The best trials again, each over fresh seeds."""

import logging
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial

from llmexp.errors import RequestError
from llmexp.sweep.outcome import ranking

if TYPE_CHECKING:
    from llmexp.sweep.search import Search

log = logging.getLogger("llmexp.sweep")


def confirm(
    search: "Search", top: Sequence[FrozenTrial], seeds: int
) -> tuple[list[str], FrozenTrial]:
    """Repeat trials over so many seeds each; return what was found, in words, and the winner.

    The seed that the search itself used is left out: it is what made these trials look best. The
    runs are a study of their own beside the search, resumable and kept like it.
    """
    seed = first_seed(search.composer.config)
    points = [
        (
            trial.params,
            {
                "of": trial.number,
                "overrides": [f"seed={seed + extra}"],
                "folder": f"confirm/{trial.number}-seed{seed + extra}",
            },
        )
        for trial in top
        for extra in range(1, seeds + 1)
    ]
    name = f"{search.settings.study_name}.confirm"
    with search.study(name, math.inf, fixed_points=True) as study:
        study.enqueue(points)
        numbers = ", ".join(str(trial.number) for trial in top)
        log.info("study %s: trials %s again, over %d fresh seeds each", name, numbers, seeds)
        search.run_trials(study, {"_target_": "optuna.pruners.NopPruner"})
        wanted = [more for _, more in points]
        done = [t for t in ranking(study.trials()) if t.user_attrs["point"] in wanted]
    losses = {
        trial.number: [
            t.value
            for t in done
            if t.value is not None and t.user_attrs["point"]["of"] == trial.number
        ]
        for trial in top
    }
    return _verdict(top, losses, seeds)


def first_seed(config: DictConfig) -> int:
    """Return the seed of the trials, after which the fresh ones come."""
    seed = OmegaConf.select(config, "seed")
    if not isinstance(seed, int):
        raise RequestError(f"hydra.sweeper.confirm needs a config with a seed, found seed={seed}.")
    return seed


def _verdict(
    top: Sequence[FrozenTrial], losses: dict[int, list[float]], seeds: int
) -> tuple[list[str], FrozenTrial]:
    complete = [trial for trial in top if losses[trial.number]]
    if not complete:
        return [f"Confirmed over {seeds} fresh seeds: none of the runs finished."], top[0]
    complete.sort(key=lambda trial: statistics.fmean(losses[trial.number]))
    lines = [f"Confirmed over {seeds} fresh seeds each, mean eval/loss and spread:"]
    for trial in complete:
        found = losses[trial.number]
        spread = f" ± {statistics.stdev(found):.4f}" if len(found) > 1 else ""
        missing = f" ({seeds - len(found)} did not finish)" if len(found) < seeds else ""
        lines.append(f"  trial {trial.number}: {statistics.fmean(found):.4f}{spread}{missing}")
    lines.append(f"Winner: trial {complete[0].number}{_doubt(complete, losses)}. Again:")
    return lines, complete[0]


def _doubt(complete: Sequence[FrozenTrial], losses: dict[int, list[float]]) -> str:
    """Return a reservation where two means are closer than their standard error."""
    if len(complete) < 2:
        return ""
    first, second = (losses[trial.number] for trial in complete[:2])
    if min(len(first), len(second)) < 2:
        return ""
    error = math.sqrt(sum(statistics.variance(each) / len(each) for each in (first, second)))
    if statistics.fmean(second) - statistics.fmean(first) > 2 * error:
        return ""
    return f", though trial {complete[1].number} is as good within the noise of the seeds"
