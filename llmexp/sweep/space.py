"""What is searched: Hydra's own override grammar, read as Optuna distributions."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
)
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from llmexp.errors import RequestError

Value = str | int | float | bool | None
WORD = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)  # what needs no quotes, and stays a text without
NO_WORDS = ("true", "false", "null", "nan", "inf")
GRAMMAR = (
    "choice(4,8), interval(0,1), int(interval(1,9)), tag(log,interval(1e-5,1e-3)), range(1,9,2)"
)


@dataclass(frozen=True)
class Space:
    """The searched keys with their distributions, and the overrides that hold for every trial."""

    searched: dict[str, BaseDistribution]
    fixed: tuple[str, ...]

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Return the command line of one point: what is fixed first, then what is searched."""
        return [*self.fixed, *(f"{key}={text(value)}" for key, value in params.items())]

    def defaults(self, config: DictConfig) -> dict[str, Value] | None:
        """Return the point at which the config stands by itself, or None if it lies outside."""
        point = {key: _default(config, key) for key in self.searched}
        inside = all(_holds(self.searched[key], value) for key, value in point.items())
        return point if inside else None

    def corners(self) -> Iterator[list[str]]:
        """Yield command lines that together name every choice and both ends of every interval."""
        for key, distribution in self.searched.items():
            if isinstance(distribution, CategoricalDistribution):
                values: list[Any] = list(distribution.choices)
            else:
                assert isinstance(distribution, FloatDistribution | IntDistribution)
                values = [distribution.low, distribution.high]
            for value in values:
                yield self.overrides({key: value})

    def grid(self) -> dict[str, list[Any]]:
        """Return all values of every key; raise RequestError where there is no end of them."""
        return {key: _all_values(key, found) for key, found in self.searched.items()}

    def as_dict(self) -> dict[str, str]:
        """Return the space in words, one per key, equal exactly if the distributions are."""
        return {key: _words(found) for key, found in sorted(self.searched.items())}


def parse(overrides: list[Override]) -> Space:
    """Read overrides, of which the last of a key wins; raise RequestError with all mistakes."""
    last = {override.key_or_group: override for override in overrides}
    searched: dict[str, BaseDistribution] = {}
    fixed: list[str] = []
    mistakes: list[str] = []
    for override in last.values():
        if not override.is_sweep_override():
            fixed.append(override.input_line or "")
            continue
        try:
            searched[override.get_key_element()] = _distribution(override)
        except ValueError as error:
            mistakes.append(f"{override.input_line}: {error}")
    if not searched and not mistakes:
        mistakes.append(
            "Nothing is searched: give a key a range, e.g. "
            "'optimizer.lr=tag(log,interval(1e-5,1e-3))', or choose a search with sweep=lr_batch."
        )
    if mistakes:
        raise RequestError("\n".join(mistakes))
    return Space(searched, tuple(fixed))


def text(value: object) -> str:
    """Write a value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not (WORD.fullmatch(value) and value.lower() not in NO_WORDS):
        return str(QuotedString(value, Quote.single).with_quotes())
    return str(value)


def _words(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {', '.join(map(text, distribution.choices))}"
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    whole = "whole numbers " if isinstance(distribution, IntDistribution) else ""
    step = f", step {distribution.step}" if distribution.step else ""
    scale = ", logarithmic" if distribution.log else ""
    return f"{whole}{distribution.low} to {distribution.high}{step}{scale}"


def _distribution(override: Override) -> BaseDistribution:
    if override.is_add() or override.is_force_add() or override.is_delete():
        raise ValueError("only keys that exist can be searched; write it without the sign in front")
    sweep: Any = override.value()
    tags = sorted(getattr(sweep, "tags", ()))
    log = tags == ["log"]
    if tags and not (log and isinstance(sweep, IntervalSweep)):
        raise ValueError(f"tag({','.join(tags)}, ...) means nothing here; known is {GRAMMAR}")
    if isinstance(sweep, IntervalSweep):
        return _interval(sweep, log)
    if isinstance(sweep, RangeSweep) and not sweep.shuffle:
        return _range(list(sweep.range()))
    values = list(override.sweep_iterator(transformer=_choice))
    if not values or len(set(map(repr, values))) < len(values):
        raise ValueError(f"needs choices that differ, found {len(values)}: {values}")
    return CategoricalDistribution(values)


def _interval(sweep: IntervalSweep, log: bool) -> BaseDistribution:
    low, high = sweep.start, sweep.end
    if low is None or high is None or not low < high or (log and low <= 0):
        above = "0 < " if log else ""
        raise ValueError(f"{above}low < high must hold, found low={low}, high={high}")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _range(values: list[Any]) -> BaseDistribution:
    """Read range(start, stop, step): the stop is left out, as everywhere in Hydra."""
    if not values:
        raise ValueError("the range is empty")
    if len(values) == 1:
        return CategoricalDistribution(values)
    low, high, step = min(values), max(values), abs(values[1] - values[0])
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high, step=step)
    return FloatDistribution(low, high, step=step)


def _choice(value: Any) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"numbers, texts, true and false can be chosen from, {value} cannot")


def _all_values(key: str, distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.step is None or distribution.log:
        raise RequestError(
            f"A grid needs a list, and {key} is an interval: write {key}=choice(...) or "
            f"{key}=range(...), or take another sampler: hydra/sweeper/sampler=tpe"
        )
    steps = round((distribution.high - distribution.low) / distribution.step)
    return [distribution.low + index * distribution.step for index in range(steps + 1)]


def _default(config: DictConfig, key: str) -> Any:
    choices = config.hydra.runtime.choices
    return choices[key] if key in choices else OmegaConf.select(config, key)


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    steps = (value - distribution.low) / (distribution.step or 1)
    on_grid = isinstance(distribution, FloatDistribution) and distribution.step is None
    return distribution.low <= value <= distribution.high and (
        on_grid or math.isclose(steps, round(steps))
    )
