"""Forward and backward of a pass, launched on a GPU as one CUDA graph.

A step of GPT-2 is a thousand kernels, and a fast card waits for Python to launch them: on an H200
4 rows of 512 tokens took 27 ms a step, of which 15 were work. A graph is recorded once for each
shape and replayed by one call: the same kernels on the same memory, and new random numbers.

What has to hold for that:

* Shapes repeat. Rows are filled up to a few widths and numbers of labels; what fills them has no
  label, so it adds nothing to loss and gradient.
* Memory stays where it is. Inputs are copied into the graph's own; gradients keep their place
  between steps; all graphs share one pool, since no two of them run at once.
* Nothing reads a number of the GPU on the way. A family that does (a router, a scan) is found out
  before anything is recorded, and goes kernel by kernel.
"""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmexp import engine
from llmexp.contracts import Batch, MicroBatch
from llmexp.loss import IGNORE
from llmexp.precision import Precision

KEPT = 32  # graphs; beyond them the one that was not used for longest is recorded anew
WIDTH = 64  # positions; rows are filled up to a multiple of it
FINENESS = 8  # numbers of labels between two powers of two

Shape = tuple[int, int, int, bool]  # B, T, N, and whether rows are packed
log = logging.getLogger("llmexp")


@dataclass(frozen=True)
class Rows:
    """What a pass reads, at a shape that many passes share; int64."""

    input_ids: Tensor  # [B, T]
    targets: Tensor  # [B, T]
    position_ids: Tensor | None  # [B, T]
    labels: Tensor  # [N]

    @property
    def shape(self) -> Shape:
        """What a graph is recorded for."""
        return (*self.input_ids.shape, len(self.labels), self.position_ids is not None)

    def tensors(self) -> list[Tensor]:
        """Return all of them."""
        return [tensor for tensor in vars(self).values() if tensor is not None]

    def to(self, device: torch.device) -> Rows:
        """Return copies on the GPU; nobody waits for them."""
        positions = None if self.position_ids is None else _sent(self.position_ids, device)
        others = (self.input_ids, self.targets, self.labels)
        input_ids, targets, labels = (_sent(tensor, device) for tensor in others)
        return Rows(input_ids, targets, positions, labels)


@dataclass(frozen=True)
class Pass:
    """A recorded pass: what it reads and what it leaves, always at the same place."""

    graph: torch.cuda.CUDAGraph
    rows: Rows
    label_tokens: Tensor  # of the whole step
    loss: Tensor

    def run(self, rows: Rows, label_tokens: int) -> Tensor:
        """Replay the pass on other rows; return its share of the step's loss."""
        for mine, other in zip(self.rows.tensors(), rows.tensors(), strict=True):
            mine.copy_(other.pin_memory(), non_blocking=True)
        self.label_tokens.fill_(label_tokens)
        self.graph.replay()
        return self.loss


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True)


class Graphs:
    """Does what `engine.accumulate` does, each pass by a graph."""

    def __init__(self) -> None:
        self._waits: bool | None = None  # such a model goes kernel by kernel; None: not tried yet
        self._passes: OrderedDict[Shape, Pass] = OrderedDict()
        self._gradients: list[Tensor] = []
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(
        self, model: nn.Module, batch: Batch, precision: Precision, micro_batch_size: int
    ) -> Tensor:
        """Add the gradient of one optimizer step to the parameters; return its loss."""
        device = next(model.parameters()).device
        longest = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
        total = torch.zeros((), device=device)
        try:
            self._place_gradients(model)
            for micro_batch in batch.micro_batches(micro_batch_size):
                rows = filled(micro_batch, longest=longest)
                if found := self._graph_for(rows, model, precision):
                    total += found.run(rows, batch.label_tokens)
                else:
                    total += self._pass(model, rows.to(device), batch.label_tokens, precision)
        except torch.OutOfMemoryError:
            self._passes.clear()  # and gives back what they hold
            raise
        return total

    def _graph_for(self, rows: Rows, model: nn.Module, precision: Precision) -> Pass | None:
        """Return the graph of a shape, recorded now where there is none; None: go without."""
        shape = rows.shape
        if shape in self._passes:
            self._passes.move_to_end(shape)
        elif not self._waits:
            self._record(model, rows, precision)
        return self._passes.get(shape)

    def _place_gradients(self, model: nn.Module) -> None:
        """Put zeros where the graphs add their gradients."""
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        if not self._gradients:
            self._gradients = [torch.zeros_like(weight) for weight in weights]
        else:
            torch._foreach_zero_(self._gradients)
        for weight, gradient in zip(weights, self._gradients, strict=True):
            weight.grad = gradient

    def _record(self, model: nn.Module, rows: Rows, precision: Precision) -> None:
        """Record a pass of this shape, unless the model cannot be recorded.

        That changes nothing else: neither gradients nor random numbers.
        """
        device = next(model.parameters()).device
        still, label_tokens = rows.to(device), torch.ones((), device=device)
        state = torch.cuda.get_rng_state(device)
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                if self._waits is None:
                    self._waits = self._try(model, still, label_tokens, precision)
                if self._waits:
                    name = type(model).__name__
                    log.info(f"launch  kernel by kernel: {name} reads numbers of the GPU in a pass")
                    return
                graph = torch.cuda.CUDAGraph()
                torch.cuda.synchronize()
                graph.capture_begin(pool=self._pool)
                try:
                    loss = self._pass(model, still, label_tokens, precision)
                finally:
                    graph.capture_end()
        finally:
            torch.cuda.current_stream().wait_stream(self._stream)
            torch.cuda.set_rng_state(state, device)
        while len(self._passes) >= KEPT:
            self._passes.popitem(last=False)
        self._passes[still.shape] = Pass(graph, still, label_tokens, loss)

    def _try(
        self, model: nn.Module, rows: Rows, label_tokens: Tensor, precision: Precision
    ) -> bool:
        """Run a pass twice, and say whether the second had to wait for the GPU.

        Raises torch.OutOfMemoryError where it does not fit: better here than while recording.
        """
        placed = [weight.grad for weight in model.parameters()]
        model.zero_grad(set_to_none=True)
        try:
            for mode in ("default", "error"):  # the first may allocate and compile
                torch.cuda.set_sync_debug_mode(mode)
                self._pass(model, rows, label_tokens, precision)
                model.zero_grad(set_to_none=True)
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            return True
        finally:
            torch.cuda.set_sync_debug_mode("default")
            for weight, gradient in zip(model.parameters(), placed, strict=True):
                weight.grad = gradient
        torch.cuda.empty_cache()  # the graph takes as much again, from its own pool
        return False

    def _pass(
        self, model: nn.Module, rows: Rows, label_tokens: int | Tensor, precision: Precision
    ) -> Tensor:
        with precision.autocast(rows.input_ids.device):
            return engine.backward(model, rows, label_tokens, precision)


def filled(micro_batch: MicroBatch, *, longest: int) -> Rows:
    """Return the rows of a micro-batch, filled up to a shape that others have too.

    A filling label points at a position whose target is IGNORE; `longest`: positions that the model
    has.
    """
    width = micro_batch.input_ids.shape[1]
    extra = max(width, min(-(-width // WIDTH) * WIDTH, longest)) - width
    targets = F.pad(micro_batch.targets, (0, extra), value=IGNORE)
    labels = micro_batch.labels + micro_batch.labels // width * extra
    unused = (targets.flatten() == IGNORE).nonzero()
    number = min(rounded(len(labels)), targets.numel())
    if number > len(labels):
        labels = torch.cat([labels, unused[0].expand(number - len(labels))])
    positions = micro_batch.position_ids
    return Rows(
        input_ids=F.pad(micro_batch.input_ids, (0, extra)),
        targets=targets,
        position_ids=None if positions is None else F.pad(positions, (0, extra)),
        labels=labels,
    )


def rounded(number: int) -> int:
    """Return the next larger number that passes may have, at most an eighth more from 512 on."""
    step = max(WIDTH, 1 << max(0, number.bit_length() - FINENESS.bit_length()))
    return -(-number // step) * step
