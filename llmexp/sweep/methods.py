"""Samplers and pruners, built from their config groups."""

import importlib
import importlib.util
import random
from typing import Any

from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler

from llmexp.errors import RequestError
from llmexp.sweep.space import Space

Config = dict[str, Any]  # {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 8, ...}
NEEDS = {"QMCSampler": "scipy", "GPSampler": "scipy", "CmaEsSampler": "cmaes"}  # when they sample
SEQUENTIAL = ("GridSampler", "QMCSampler")  # walk one sequence, whose place is kept in the study


def build_sampler(config: Config, space: Space, *, seed: int | None, number: int) -> BaseSampler:
    """Return the sampler of one trial.

    It is a new one for each, seeded by (seed, number): a search that was cut into pieces proposes
    what it would have proposed in one go, and two workers never propose the same point.
    """
    extra: Config = {"seed": seed}
    if not config["_target_"].endswith(SEQUENTIAL):
        mixed = random.Random(f"{seed}/{number}").getrandbits(31)
        extra["seed"] = None if seed is None else mixed
    if config["_target_"].endswith("GridSampler"):
        extra["search_space"] = space.grid()
    sampler = _build(config | extra, "sampler")
    assert isinstance(sampler, BaseSampler)
    return sampler


def build_pruner(config: Config, n_trials: float) -> BasePruner:
    """Return the pruner, or one that never prunes in a study of fewer than `from_trials` trials."""
    arguments = dict(config)
    if n_trials < arguments.pop("from_trials", 0):
        return NopPruner()
    pruner = _build(arguments, "pruner")
    assert isinstance(pruner, BasePruner)
    return pruner


def _build(config: Config, kind: str) -> object:
    arguments = dict(config)
    target = str(arguments.pop("_target_"))
    module, _, name = target.rpartition(".")
    if not target.startswith(f"optuna.{kind}s."):
        raise RequestError(
            f"hydra.sweeper.{kind}._target_={target}: only optuna.{kind}s.* may be called."
        )
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        raise RequestError(f"optuna's {name} needs {NEEDS[name]}: pip install {NEEDS[name]}")
    try:
        return getattr(importlib.import_module(module), name)(**arguments)
    except (AttributeError, TypeError, ValueError) as error:
        raise RequestError(
            f"hydra/sweeper/{kind}: {target} refuses {arguments}: {error}"
        ) from error
