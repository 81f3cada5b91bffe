"""The rungs that change numerics: taken only if train.allow names them, and nothing else fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from llmexp.memory import setting
from llmexp.memory.measure import Request

# in the order in which they are taken, each on top of those before; and what they change, in words
OPT_INS = {
    "adamw8bit": "AdamW keeps its moments in 8 bits (bitsandbytes), so every update is rounded "
    "differently",
    "bf16_parameters": "weights and gradients are bf16: 8 bits of mantissa; updates are computed "
    "in fp32 and rounded stochastically",
}


@dataclass(frozen=True)
class Case:
    """What is to be trained: the settings, the model's config, the number formats that may come."""

    settings: Mapping[str, Any]
    config: Mapping[str, Any]
    precisions: tuple[str, ...]
    allowed: tuple[str, ...] = ()  # of OPT_INS: what may be taken
    taken: tuple[str, ...] = ()  # of OPT_INS: what these settings took

    @property
    def length(self) -> int:
        """Tokens per row."""
        return int(self.settings["data"]["max_length"])

    @property
    def batch_size(self) -> int:
        """Examples per optimizer step; packed, they have fewer rows."""
        return int(self.settings["train"]["batch_size"])

    def requests(self, rows: int, *, checkpointing: bool) -> list[Request]:
        """Return what to measure for micro-batches of `rows` rows."""
        passes = 1 if rows >= self.batch_size else 2
        return [
            Request(self.variant(precision, checkpointing=checkpointing), rows, passes)
            for precision in self.precisions
        ]

    def variant(self, precision: str, *, checkpointing: bool) -> setting.Setting:
        """Return the setting of one number format and rung."""
        return setting.make(
            self.settings, self.config, precision=precision, checkpointing=checkpointing
        )


def opt_ins(case: Case) -> Iterator[Case]:
    """Yield the case as it is, then with one more of what is allowed each time."""
    yield case
    for name in OPT_INS:
        if name in case.allowed and name not in case.taken and _applies(case, name):
            case = taking(case, (name,))
            yield case


def taking(case: Case, names: Sequence[str]) -> Case:
    """Return the case with these rungs taken: another optimizer, another precision."""
    settings, precisions = dict(case.settings), case.precisions
    if "adamw8bit" in names:
        part = page("optimizer", "adamw8bit")
        now = settings["optimizer"]  # its own learning rate, betas, ...
        settings["optimizer"] = {k: part[k] if k.startswith("_") else now[k] for k in part}
    if "bf16_parameters" in names:
        settings["precision"] = {**settings["precision"], "name": "bf16_parameters"}
        precisions = ("bf16_parameters",)
    taken = (*case.taken, *names)
    return replace(case, settings=settings, precisions=precisions, taken=taken)


def _applies(case: Case, name: str) -> bool:
    """Tell whether a rung exists here: for plain AdamW; where the products may be bf16 anyway."""
    if name == "bf16_parameters":
        return "bf16" in case.precisions
    optimizer = case.settings["optimizer"]
    return optimizer["_target_"] == "torch.optim.AdamW" and not optimizer.get("amsgrad")


def page(group: str, option: str) -> dict[str, Any]:
    """Return a page of conf/, as it stands there; its interpolations cost no memory."""
    from llmexp.request import CONF

    return dict(yaml.safe_load((Path(CONF) / group / f"{option}.yaml").read_text()))
