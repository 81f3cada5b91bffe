"""The first way to train that fits a budget, with the largest useful micro-batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llmexp.memory import formula, setting
from llmexp.memory.budget import Budget
from llmexp.memory.prediction import MARGIN, Prediction, predict
from llmexp.memory.rungs import Case, opt_ins

USEFUL = 2048  # tokens per forward pass; with fewer a GPU idles, so the next rung is tried


@dataclass(frozen=True)
class Fit:
    """A way to train that fits."""

    rows: int  # per micro-batch
    checkpointing: bool
    prediction: Prediction
    case: Case  # as asked for, or with what it allows


def search(case: Case, budget: Budget) -> Fit | None:
    """Return the first way to train that fits. What changes numerics is never taken for speed:
    only if it is allowed, and if nothing before it fits at all.
    """
    return next((fit for rung in opt_ins(case) if (fit := _exact(rung, budget))), None)


def _exact(case: Case, budget: Budget) -> Fit | None:
    """Return the first rung with a useful micro-batch that fits, else the largest that fits.

    The rungs: as it is, then with activation checkpointing, unless the settings fix one.
    """
    best: Fit | None = None
    for checkpointing in rungs(case):
        found = _largest(case, budget, checkpointing=checkpointing)
        if found is not None and (best is None or found.rows > best.rows):
            best = found
        if best is not None and useful(case, best.rows):
            break
    return best


def rungs(case: Case) -> tuple[bool, ...]:
    """Return the choices of activation checkpointing, the fastest first."""
    wanted = case.settings["train"]["activation_checkpointing"]
    return (False, True) if wanted == "auto" else (bool(wanted),)


def sizes(case: Case) -> list[int]:
    """Return the micro-batches worth trying, the largest first: those that cut a step evenly."""
    wanted = case.settings["train"]["micro_batch_size"]
    if wanted != "auto":
        return [min(int(wanted), case.batch_size)]
    total = case.batch_size
    return sorted({math.ceil(total / count) for count in range(1, total + 1)}, reverse=True)


def useful(case: Case, rows: int) -> bool:
    """Tell whether a micro-batch is the whole step, or large enough to keep a GPU busy."""
    return rows >= case.batch_size or rows * case.length >= USEFUL


def least(case: Case) -> Prediction:
    """Return the smallest prediction of all: what the refusal of a request names."""
    *_, case = opt_ins(case)
    rows, checkpointing = sizes(case)[-1], rungs(case)[-1]
    return predict(case.requests(rows, checkpointing=checkpointing))


def promising(case: Case, budget: Budget, *, tokens: int) -> bool:
    """Tell whether so few tokens per micro-batch may fit, by the formula alone."""
    *_, case = opt_ins(case)
    requests = case.requests(1, checkpointing=rungs(case)[-1])
    forms = formula.forms(requests)
    layers = setting.layer_count(case.config) or 0
    live = max(forms[r.setting.key(r.passes)].peak(layers, tokens) for r in requests)
    return live * (1 + MARGIN) <= budget.bytes


def _largest(case: Case, budget: Budget, *, checkpointing: bool) -> Fit | None:
    """Return the largest micro-batch that fits: the formula discards, a full replay decides."""
    for rows in _promising(case, budget, checkpointing=checkpointing):
        prediction = predict(case.requests(rows, checkpointing=checkpointing))
        if prediction.total <= budget.bytes:
            return Fit(rows, checkpointing, prediction, case)
    return None


def _promising(case: Case, budget: Budget, *, checkpointing: bool) -> Iterator[int]:
    """Yield the micro-batches whose live bytes fit, the largest first."""
    layers = setting.layer_count(case.config) or 0
    wanted = {rows: case.requests(rows, checkpointing=checkpointing) for rows in sizes(case)}
    forms = formula.forms([request for group in wanted.values() for request in group])
    for rows, requests in wanted.items():
        tokens = rows * case.length
        live = max(forms[r.setting.key(r.passes)].peak(layers, tokens) for r in requests)
        if live * (1 + MARGIN) <= budget.bytes:
            yield rows
