"""What a run has written so far, as arrays: all that a diagnosis rests on."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class About:
    """What is known of a run beside its rows."""

    settings: Row = field(default_factory=dict)
    steps: int = 0  # optimizer steps it is to take; 0: not known
    data: Row = field(default_factory=dict)  # of the data report, see llmexp/data/report.py

    def get(self, key: str, default: Any = None) -> Any:
        """Return the setting at a dotted key, `default` where there is none."""
        value: Any = self.settings
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return default if value is None else value

    def number(self, key: str, default: float) -> float:
        """Return the setting at a dotted key as a number, `default` where it is none."""
        return number(self.get(key), default)


@dataclass(frozen=True)
class Curves:
    """The columns of metrics.jsonl and timing.jsonl; NaN where a number is missing.

    R rows of training, V validations, T rows of timing.
    """

    step: Floats  # [R]
    train: Floats  # [R] nats per label token, mean since the row before
    tokens: Floats  # [R] label tokens so far
    rate: Floats  # [R] learning rate
    norm: Floats  # [R] gradient norm before clipping
    nonfinite: int  # steps so far that updated nothing
    spikes: int
    val_step: Floats  # [V]
    val_epoch: Floats  # [V]
    val: Floats  # [V] nats per label token
    train_before: Floats  # [V] training loss since the validation before
    speed: Floats  # [T] tokens per second
    peak: Floats  # [T] GiB
    waiting: Floats  # [T] share of the time spent waiting for data
    samples: tuple[str, ...]  # the texts of the last validation

    @property
    def last_step(self) -> int:
        """The step of the last row."""
        return int(max([0.0, *self.step[-1:], *self.val_step[-1:]]))  # a row without is left out

    @property
    def best(self) -> int:
        """The place of the lowest validation loss; there has to be a validation."""
        return int(np.argmin(np.where(np.isfinite(self.val), self.val, math.inf)))


def curves(metrics: Iterable[Row], timing: Iterable[Row], samples: Sequence[Row] = ()) -> Curves:
    """Read the rows of a run. What is damaged in a row reads as missing."""
    rows = [row for row in metrics if 0 <= number(row.get("train/global_step")) < 2**53]
    train = [row for row in rows if "train/loss" in row]
    validations = [row for row in rows if "eval/loss" in row]
    paces = [row for row in timing if "event" not in row]
    step, loss, tokens = (
        column(train, f"train/{name}") for name in ("global_step", "loss", "tokens")
    )
    val_step = column(validations, "train/global_step")
    epochs = column(validations, "train/epoch")
    epochs[val_step == 0] = 0.0
    last = train[-1] if train else {}
    return Curves(
        step=step,
        train=loss,
        tokens=tokens,
        rate=column(train, "train/learning_rate"),
        norm=column(train, "train/grad_norm"),
        nonfinite=count(last.get("train/nonfinite_steps")),
        spikes=count(last.get("train/spikes")),
        val_step=val_step,
        val_epoch=epochs,
        val=column(validations, "eval/loss"),
        train_before=between(step, loss, tokens, val_step),
        speed=column(paces, "perf/tokens_per_second"),
        peak=column(paces, "memory/peak_gib"),
        waiting=column(paces, "perf/data_share"),
        samples=last_texts(samples),
    )


def between(step: Floats, loss: Floats, tokens: Floats, ends: Floats) -> Floats:
    """Return the training loss per token between one validation and the next, [V]."""
    with np.errstate(all="ignore"):
        weight = np.diff(tokens, prepend=0.0)
    weight = np.where(np.isfinite(loss) & np.isfinite(weight) & (weight > 0), weight, 0.0)
    found = []
    for start, end in zip(np.concatenate([[-1.0], ends[:-1]]), ends, strict=False):
        own = (step > start) & (step <= end)
        total = weight[own].sum()
        with np.errstate(all="ignore"):
            nats = (np.nan_to_num(loss[own]) * weight[own]).sum()
        found.append(nats / total if total else math.nan)
    return np.array(found)


def column(rows: Sequence[Row], key: str) -> Floats:
    """Return one number per row, NaN where there is none."""
    return np.array([number(row.get(key)) for row in rows], np.float64)


def finite(values: Floats) -> Floats:
    """Return the values that are finite."""
    return values[np.isfinite(values)]


def middle(values: Floats) -> float:
    """Return the median of the finite values, NaN where there is none."""
    return float(np.median(known)) if len(known := finite(values)) else math.nan


def mean(values: Floats) -> float:
    """Return the mean of the finite values, NaN where there is none."""
    return float(known.mean()) if len(known := finite(values)) else math.nan


def highest(values: Floats) -> float:
    """Return the highest of the finite values, NaN where there is none."""
    return float(known.max()) if len(known := finite(values)) else math.nan


def lowest(values: Floats) -> float:
    """Return the lowest of the finite values, NaN where there is none."""
    return -highest(-values)


def number(value: Any, default: float = math.nan) -> float:
    """Read a number, or one that is not finite written as text; `default` for anything else."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    try:
        return float(value)
    except OverflowError:
        return math.inf


def count(value: Any) -> int:
    """Read a number of steps, 0 for anything else."""
    return int(known) if math.isfinite(known := number(value)) else 0


def last_texts(samples: Sequence[Row]) -> tuple[str, ...]:
    """Return the texts that were written last, those before training left out."""
    steps = column(samples, "train/global_step")
    last = highest(steps)
    return tuple(
        str(row.get("text", "")) for row, s in zip(samples, steps, strict=True) if s == last > 0
    )
