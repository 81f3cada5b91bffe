"""The nearest plans that fit, for a request that does not: each one change, each a command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from llmexp.memory import budget as budgets
from llmexp.memory import setting
from llmexp.memory.budget import Budget
from llmexp.memory.prediction import Prediction
from llmexp.memory.rungs import OPT_INS, Case, page
from llmexp.memory.search import least, promising, search

FAMILY = ("gpt2-xl", "gpt2-large", "gpt2-medium", "gpt2", "distilgpt2", "gpt2-nano")
SHORTEST = 128  # tokens per row


def commands(case: Case, budget: Budget, overrides: Sequence[str]) -> list[str]:
    """Return one command for each kind of change that makes the request fit."""
    smallest = least(case)
    changes = (
        _checkpointing(case, budget),
        _micro_batches(case, budget),
        _opt_ins(case, budget, smallest),
        _optimizers(case, budget, smallest),
        _lengths(case, budget),
        _models(case, budget),
        _cards(case),
    )
    found = [change for kind in changes for change in islice(kind, 1)]
    return [_command(case, overrides, change, remark) for change, remark in found]


def _checkpointing(case: Case, budget: Budget) -> Iterator[tuple[str, str]]:
    train = {**case.settings["train"], "activation_checkpointing": "auto"}
    freed = replace(case, settings={**case.settings, "train": train})
    if train != case.settings["train"] and search(freed, budget) is not None:
        yield "train.activation_checkpointing=auto", "recomputes in backward what it does not keep"


def _micro_batches(case: Case, budget: Budget) -> Iterator[tuple[str, str]]:
    train = {**case.settings["train"], "micro_batch_size": "auto"}
    freed = replace(case, settings={**case.settings, "train": train})
    if train != case.settings["train"] and search(freed, budget) is not None:
        yield "train.micro_batch_size=auto", "what fits is derived"


def _opt_ins(case: Case, budget: Budget, smallest: Prediction) -> Iterator[tuple[str, str]]:
    """Yield what to allow: it quarters the moments, then halves weights and gradients."""
    sizes = [smallest.parts.get(n, 0) for n in ("weights", "gradients", "optimizer states")]
    for names in (("adamw8bit",), tuple(OPT_INS)):
        share = 1 if len(names) == 1 else 0.5
        if (sizes[0] + sizes[1]) * share + sizes[2] / 4 > budget.bytes:
            continue
        allowed = tuple(name for name in OPT_INS if name in {*case.allowed, *names})
        fit = search(replace(case, allowed=allowed), budget)
        if fit is not None:
            taken = ",".join(name for name in allowed if name in {*case.allowed, *fit.case.taken})
            changes = "; ".join(OPT_INS[name] for name in fit.case.taken)
            yield f"train.allow=[{taken}]", f"other numerics: {changes}"


def _optimizers(case: Case, budget: Budget, smallest: Prediction) -> Iterator[tuple[str, str]]:
    part = page("optimizer", "adafactor")
    stateless = smallest.live - smallest.parts.get("optimizer states", 0)
    if stateless > budget.bytes:
        return
    if search(replace(case, settings={**case.settings, "optimizer": part}), budget) is not None:
        yield "optimizer=adafactor", "other updates: almost no optimizer states"


def _lengths(case: Case, budget: Budget) -> Iterator[tuple[str, str]]:
    length = case.length // 2
    while length >= SHORTEST:
        data = {**case.settings["data"], "max_length": length}
        shorter = replace(case, settings={**case.settings, "data": data})
        if promising(case, budget, tokens=length) and search(shorter, budget) is not None:
            yield f"data.max_length={length}", "shorter rows; longer examples are cut in pieces"
        length //= 2


def _models(case: Case, budget: Budget) -> Iterator[tuple[str, str]]:
    name = case.settings["model"]["name"]
    for smaller in FAMILY[FAMILY.index(name) + 1 :] if name in FAMILY else FAMILY:
        part = page("model", smaller)
        if case.length > part["architecture"]["n_positions"]:
            continue
        config = setting.gpt2_config(part["architecture"], part["dropout"])
        settings = {**case.settings, "model": part}
        if search(replace(case, settings=settings, config=config), budget) is not None:
            yield f"model={smaller}", "a smaller model"


def _cards(case: Case) -> Iterator[tuple[str, str]]:
    here = case.settings["hw"]["budget_gib"] or 0
    for name in budgets.REPORTED:
        patch = page("hw", name)["hw"]
        if patch["budget_gib"] <= here:
            continue
        larger = budgets.preset({**case.settings["hw"], **patch})
        if larger is not None and search(case, larger) is not None:
            yield f"hw={name}", "a larger card"


def _replaced(override: str, key: str) -> bool:
    """Tell whether a change of `key` takes an override's place: that of a part brings its own
    values, and takes no others; what the card shows stays."""
    name = override.partition("=")[0]
    return name == key or (name.startswith(f"{key}.") and name != "hw.display")


def _command(case: Case, overrides: Sequence[str], change: str, remark: str) -> str:
    settings = case.settings
    given = list(overrides) or [
        f"model={settings['model']['name']}",
        f"hw={settings['hw']['name']}",
    ]
    key = change.partition("=")[0]
    kept = [override for override in given if not _replaced(override.lstrip("+"), key)]
    return f"python -m llmexp.train {shlex.join([*kept, change])}   # {remark}"
