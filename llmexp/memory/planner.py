"""The plan of a run: micro-batch, accumulation, activation checkpointing, and the proof it fits.

`hw` changes how a run fits, never what it learns: what changes the numbers is chosen here only if
train.allow names it, and the plan says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmexp.errors import RequestError
from llmexp.memory import budget as budgets
from llmexp.memory import cpu, measure, nearest, rungs, setting, system
from llmexp.memory.budget import Budget
from llmexp.memory.measure import Unmeasurable
from llmexp.memory.prediction import Prediction
from llmexp.memory.rungs import Case
from llmexp.memory.search import USEFUL, Fit, least, search, sizes

if TYPE_CHECKING:
    import torch

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """How a run fits."""

    micro_batch_size: int  # rows per forward pass
    accumulation: int  # forward passes per optimizer step, at most: packed rows are fewer
    activation_checkpointing: bool
    budget: Budget | None  # None: the CPU
    prediction: Prediction | None  # None: the CPU, or a model that could not be traced
    lines: tuple[str, ...]  # the plan in words
    advice: str  # what to try when it does not fit after all
    settings: Settings  # as asked for, but for the optimizer and precision that were taken
    taken: tuple[str, ...] = ()  # of train.allow

    @property
    def predicted_gib(self) -> float | None:
        """What torch.cuda.max_memory_allocated will say, in GiB."""
        return None if self.prediction is None else self.prediction.allocated / budgets.GIB


def plan(
    settings: Settings,
    *,
    device: torch.device | None = None,
    overrides: Sequence[str] = (),
    taken: Sequence[str] | None = None,
) -> Plan:
    """Return the plan of a run, in milliseconds where its numbers are known.

    `device`: where the run will be; None asks for the plan alone. `overrides`: the command line,
    for the commands that a refusal proposes. `taken`: what a run that continues has taken of
    train.allow; it stays so. Raises RequestError where nothing fits.
    """
    budget = _budget(settings["hw"], device)
    allowed = tuple(settings["train"]["allow"]) if taken is None else ()
    config = {} if budget is None else _config(settings["model"])
    refuse_long_rows(settings, {**(settings["model"]["architecture"] or {}), **config})
    case = Case(settings, config, _precisions(settings, device), allowed)
    case = rungs.taking(case, taken or ())
    if budget is None:
        return _on_cpu(case)
    try:
        fit = search(case, budget)
        if fit is None:
            raise RequestError(_refusal(case, budget, overrides))
    except Unmeasurable as problem:
        return _unpredicted(case, budget, reason=str(problem))
    finally:
        measure.stop()
    lines = [*_lines(budget, fit), *_elsewhere(budget, device), *_numerics(fit.case)]
    return Plan(
        micro_batch_size=fit.rows,
        accumulation=math.ceil(case.batch_size / fit.rows),
        activation_checkpointing=fit.checkpointing,
        budget=budget,
        prediction=fit.prediction,
        lines=tuple(lines),
        advice=_advice(case, checkpointing=fit.checkpointing),
        settings=fit.case.settings,
        taken=fit.case.taken,
    )


def _budget(hw: Settings, device: torch.device | None) -> Budget | None:
    """Return what the allocator may take, or None for the CPU."""
    if hw["device"] == "cpu":
        return None
    found = budgets.preset(hw)
    if device is not None and device.type == "cuda":
        found = budgets.on_card(hw, device)
    if found is not None and found.bytes <= 0:
        raise RequestError(f"{found.reason}: that leaves {found.gib:.2f} GiB to train in")
    return found


def _config(model: Settings) -> dict[str, Any]:
    """Return the model's config: of a GPT-2 as its page says, of others as their files say."""
    if model["architecture"]:
        return setting.gpt2_config(model["architecture"], model["dropout"])
    from llmexp import config

    found: dict[str, Any] = config.call(model).config().to_dict()
    return found


def refuse_long_rows(settings: Settings, config: Settings) -> None:
    """Refuse rows longer than the model, of this config.json, has positions for."""
    known = (config.get(name) for name in ("max_position_embeddings", "n_positions"))
    positions, length = next(filter(None, known), math.inf), settings["data"]["max_length"]
    if length > positions:
        raise RequestError(
            f"data.max_length={length} is more than the {positions} positions of "
            f"{settings['model']['name']}: use data.max_length={positions}"
        )


def _precisions(settings: Settings, device: torch.device | None) -> tuple[str, ...]:
    """Return the number formats that may come: with `auto` and no card, both 16-bit ones."""
    name = str(settings["precision"]["name"])
    if name != "auto":
        return (name,)
    if device is None or device.type != "cuda":
        return ("bf16", "fp16")
    from llmexp import precision

    return (precision.automatic(device)[0],)


def _numerics(case: Case) -> list[str]:
    """Say loudly what was taken that changes the numbers."""
    return [f"CHANGES NUMERICS (train.allow) {name}: {rungs.OPT_INS[name]}" for name in case.taken]


def _lines(budget: Budget, fit: Fit) -> list[str]:
    case = fit.case
    name = case.settings["model"]["name"]
    passes = math.ceil(case.batch_size / fit.rows)
    full, rest = divmod(case.batch_size, fit.rows)
    cut = f"{full} x {fit.rows}" + (f" + {rest}" if rest else "")
    others = ", ".join(name for name in case.precisions if name != fit.prediction.precision)
    rung = "with activation checkpointing" if fit.checkpointing else "no activation checkpointing"
    return [
        f"memory  {name} on {budget.gib:.2f} GiB ({budget.reason}), {fit.prediction.precision}"
        + (f" (the card decides; {others} takes no more)" if others else ""),
        *fit.prediction.table(budget),
        f"fits    {rung}, micro-batch {fit.rows}, accumulation {passes}: {cut} = "
        f"{case.batch_size} examples per step, rows of {case.length} tokens"
        + (" (packed: fewer rows, fewer passes)" if case.settings["data"]["pack"] else ""),
    ]


def _elsewhere(budget: Budget, device: torch.device | None) -> list[str]:
    if device is None or device.type == "cuda":
        return []
    return [f"        there is no CUDA device here: the CPU trains, with the plan of {budget.name}"]


def _refusal(case: Case, budget: Budget, overrides: Sequence[str]) -> str:
    """Say what the least would be, and the nearest plans that fit, as commands to paste."""
    smallest, model = least(case), case.settings["model"]["name"]
    commands = nearest.commands(case, budget, overrides)
    cure = "\n".join(["These fit:", *(f"  {command}" for command in commands)])
    return "\n".join(
        [
            f"{model} does not fit {budget.gib:.2f} GiB ({budget.reason}): micro-batch "
            f"{sizes(case)[-1]} takes {smallest.total / budgets.GIB:.2f} GiB",
            *smallest.table(budget),
            cure if commands else "No shipped preset, shorter row or smaller model fits either.",
        ]
    )


def _unpredicted(case: Case, budget: Budget, *, reason: str) -> Plan:
    """Return a small micro-batch for a model whose step could not be traced, and say so."""
    rows = max(1, USEFUL // case.length) if len(sizes(case)) > 1 else sizes(case)[0]
    rows = min(rows, case.batch_size)
    return Plan(
        micro_batch_size=rows,
        accumulation=math.ceil(case.batch_size / rows),
        activation_checkpointing=case.settings["train"]["activation_checkpointing"] is True,
        budget=budget,
        prediction=None,
        lines=(
            f"memory  not predicted, this model's step could not be traced: {reason}",
            f"        it starts at micro-batch {rows}; if memory runs out, at half of it",
            *_numerics(case),
        ),
        advice=_advice(case, checkpointing=False),
        settings=case.settings,
        taken=case.taken,
    )


def _on_cpu(case: Case) -> Plan:
    settings = case.settings
    rows, line = cpu.micro_batch_size(settings, free=system.available())
    return Plan(
        micro_batch_size=rows,
        accumulation=math.ceil(settings["train"]["batch_size"] / rows),
        activation_checkpointing=settings["train"]["activation_checkpointing"] is True,
        budget=None,
        prediction=None,
        lines=(line, *_numerics(case)),
        advice=f"Shorten data.max_length={settings['data']['max_length']}, set "
        "train.activation_checkpointing=true, or choose a smaller model.",
        settings=settings,
        taken=case.taken,
    )


def _advice(case: Case, *, checkpointing: bool) -> str:
    """Return what to try when memory runs out at micro-batch 1."""
    steps = [] if checkpointing else ["train.activation_checkpointing=true"]
    steps += [f"data.max_length={case.length // 2}"] if case.length > 64 else []
    return (
        "Other programs may hold memory of this card. Try "
        + ", or ".join([*steps, "a smaller model"])
        + "; `python -m llmexp.plan` with the same arguments shows what it takes."
    )
