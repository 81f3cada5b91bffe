"""What the engine trains on here: rows of zeros, a run nobody hears of, the setting's optimizer."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from llmexp import engine, optimizer, precision
from llmexp.contracts import Run
from llmexp.memory.setting import Setting


def build_optimizer(trained: Any, setting: Setting) -> torch.optim.Optimizer:
    """Return the model's optimizer; switch its activation checkpointing on if the setting says."""
    if setting.checkpointing:
        trained.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    return optimizer.build(trained, _factory(setting.optimizer))


def fit(
    trained: Any,
    batches: Batches,
    built: torch.optim.Optimizer,
    *,
    device: torch.device,
    steps: int = 2,
) -> engine.Plan:
    """Run `engine.fit` for some steps, a validation before and after; return its plan."""
    plan = engine.Plan(
        steps=steps,
        steps_per_epoch=steps,
        micro_batch_size=batches.rows,
        max_grad_norm=1.0,
        validate_every=1.0,
        patience=math.inf,
        log_every=1,
        seed=0,
    )
    engine.fit(
        model=trained,
        batches=batches,
        validation=batches,
        optimizer=built,
        schedule=lambda step, steps: 1.0,
        precision=precision.Precision(name=batches.setting.precision, tf32=False).choose(device),
        plan=plan,
        run=cast(Run, _Silent()),
        state=engine.State(),
    )
    return plan


def _factory(spec: Mapping[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    if spec["_target_"] == EIGHT_BIT:
        return AdamW8bit
    module, _, name = str(spec["_target_"]).rpartition(".")
    arguments = {key: value for key, value in spec.items() if not key.startswith("_")}
    return partial(getattr(importlib.import_module(module), name), **arguments)


EIGHT_BIT = "llmexp.optimizer.adamw8bit"


class AdamW8bit(torch.optim.Optimizer):
    """The state of bitsandbytes' AdamW8bit, which need not be installed to plan with it.

    Two moments of a byte per element and a float32 per block of 256; float32 ones below 4,096
    elements; two tables of 256 for all. Its kernels work in place. Source: init_state in
    bitsandbytes/optim/optimizer.py, version 0.50.2.
    """

    def __init__(self, params: Iterable[dict[str, Any]]) -> None:
        super().__init__(params, {"lr": 0.0})
        self.tables: list[Tensor] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and not self.state[weight]:
                    self.state[weight] = self._moments(weight)

    def _moments(self, weight: Tensor) -> dict[str, Any]:
        names = ("state1", "state2")
        if weight.numel() < 4096:
            return {n: torch.zeros_like(weight, dtype=torch.float32) for n in names}
        if not self.tables:
            self.tables = [torch.zeros(256, device=weight.device) for _ in names]
        state: dict[str, Any] = {}
        for number, name in enumerate(names, 1):
            state[name] = torch.zeros_like(weight, dtype=torch.uint8)
            state[f"qmap{number}"] = self.tables[number - 1]
        for number in (1, 2):
            blocks = math.ceil(weight.numel() / 256)
            state[f"absmax{number}"] = torch.zeros(blocks, device=weight.device)
        return state


@dataclass
class Rows:
    """One micro-batch: int64 [rows, length], as llmexp.data makes them."""

    input_ids: Tensor
    targets: Tensor
    segments: Tensor
    position_ids: Tensor | None
    labels: Tensor  # [rows * length]: every position is one

    @classmethod
    def of(cls, rows: int, length: int, *, packed: bool) -> Rows:
        ids = [torch.zeros(rows, length, dtype=torch.int64) for _ in range(3 + packed)]
        return cls(ids[0], ids[1], ids[2], ids[3] if packed else None, torch.arange(rows * length))

    def to(self, device: torch.device) -> Rows:
        positions = None if self.position_ids is None else self.position_ids.to(device)
        return Rows(
            self.input_ids.to(device),
            self.targets.to(device),
            self.segments.to(device),
            positions,
            self.labels.to(device),
        )


@dataclass
class Batches:
    """`passes` micro-batches in every step; only the last has rows of full length.

    The rows of real batches are shorter too, and that fragments the memory.
    """

    rows: int
    setting: Setting
    passes: int
    steps_per_epoch: int = 1
    indices: tuple[int, ...] = (0,)  # one example
    label_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.label_tokens = self.rows * self.setting.length * self.passes

    def __getitem__(self, step: int) -> Batches:
        return self

    def micro_batches(self, micro_batch_size: int, /) -> Iterator[Rows]:
        for index in range(self.passes):
            last = index == self.passes - 1
            length = self.setting.length if last else self.setting.length * 13 // 16
            yield Rows.of(micro_batch_size, length, packed=self.setting.packed)


class _Silent:
    """A run nobody hears of: the engine may tell it anything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None
