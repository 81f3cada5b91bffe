"""What the engine asks of the parts it is given: batches, a run, another way to accumulate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from llmexp.loss import Rows
from llmexp.memory import oom
from llmexp.precision import Precision
from llmexp.validation import Validation

if TYPE_CHECKING:
    from llmexp.engine import State


class MicroBatch(Rows, Protocol):
    """Rows of one forward pass: int64 tensors [B, T]."""

    @property
    def segments(self) -> Tensor: ...  # number of the example at each position, -1: padding
    def to(self, device: torch.device, /) -> MicroBatch: ...


class Batch(Protocol):
    """The examples of one optimizer step."""

    @property
    def label_tokens(self) -> int: ...
    @property
    def indices(self) -> tuple[int, ...]: ...  # of its examples
    def micro_batches(self, micro_batch_size: int, /) -> Iterator[MicroBatch]: ...


class Batches(Protocol):
    """A pure function of the optimizer step."""

    @property
    def steps_per_epoch(self) -> int: ...
    def __getitem__(self, step: int, /) -> Batch: ...


class Accumulate(Protocol):
    """Adds the gradient of one optimizer step to the parameters; returns its loss."""

    def __call__(
        self, model: nn.Module, batch: Batch, precision: Precision, micro_batch_size: int, /
    ) -> Tensor: ...


class Run(Protocol):
    """What the engine tells the world (llmexp/run.py)."""

    def log(self, state: State, metrics: dict[str, float]) -> None: ...
    def validated(self, model: nn.Module, state: State, found: Validation) -> None: ...
    def checkpoint(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State
    ) -> None: ...
    def out_of_memory(self, event: oom.Event) -> None: ...
    def stops(self) -> bool: ...
    def roll_back(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: State,
        metrics: dict[str, float],
        trouble: str,
    ) -> None: ...
