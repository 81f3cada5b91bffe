"""The nearest plans that fit, for a request that does not: each one change, each a command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from llmexp.memory import budget as budgets
from llmexp.memory import setting
from llmexp.memory.budget import Budget
from llmexp.memory.prediction import Prediction
from llmexp.memory.search import Case, least, promising, search

FAMILY = ("gpt2-xl", "gpt2-large", "gpt2-medium", "gpt2", "distilgpt2", "gpt2-nano")
SHORTEST = 128  # tokens per row


def commands(case: Case, budget: Budget, overrides: Sequence[str]) -> list[str]:
    """Return one command for each kind of change that makes the request fit."""
    smallest = least(case)
    changes = (
        _checkpointing(case, budget),
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
    train = {**train, "micro_batch_size": "auto"}
    freed = replace(case, settings={**case.settings, "train": train})
    if case.settings["train"]["micro_batch_size"] != "auto" and search(freed, budget) is not None:
        yield "train.micro_batch_size=auto", "what fits is derived"


def _optimizers(case: Case, budget: Budget, smallest: Prediction) -> Iterator[tuple[str, str]]:
    part = _page("optimizer", "adafactor")
    stateless = smallest.live - smallest.parts.get("optimizer states", 0)
    if part is None or stateless > budget.bytes:
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
        page = _page("model", smaller)
        if page is None or case.length > page["architecture"]["n_positions"]:
            continue
        config = setting.gpt2_config(page["architecture"], page["dropout"])
        settings = {**case.settings, "model": page}
        if search(replace(case, settings=settings, config=config), budget) is not None:
            yield f"model={smaller}", "a smaller model"


def _cards(case: Case) -> Iterator[tuple[str, str]]:
    here = case.settings["hw"]["budget_gib"] or 0
    for name in budgets.REPORTED:
        page = _page("hw", name)
        if page is None or page["hw"]["budget_gib"] <= here:
            continue
        larger = budgets.preset({**case.settings["hw"], **page["hw"]})
        if larger is not None and search(case, larger) is not None:
            yield f"hw={name}", "a larger card"


def _page(group: str, option: str) -> dict[str, Any] | None:
    """Return a page of conf/, as it stands there; its interpolations cost no memory."""
    from llmexp.request import CONF

    path = Path(CONF) / group / f"{option}.yaml"
    return dict(yaml.safe_load(path.read_text())) if path.is_file() else None


def _command(case: Case, overrides: Sequence[str], change: str, remark: str) -> str:
    settings: Mapping[str, Any] = case.settings
    given = list(overrides) or [
        f"model={settings['model']['name']}",
        f"hw={settings['hw']['name']}",
    ]
    key = change.partition("=")[0]
    kept = [override for override in given if override.lstrip("+").partition("=")[0] != key]
    return f"python -m llmexp.train {' '.join([*kept, change])}   # {remark}"
