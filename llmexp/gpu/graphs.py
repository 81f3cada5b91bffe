"""Forward and backward of a pass, launched on a GPU as one CUDA graph.

A step of GPT-2 is a thousand kernels, and a fast card waits for Python to launch them: on an H200
4 rows of 512 tokens took 27 ms a step, of which 15 were work. A graph is recorded once for each
shape and replayed by one call: the same kernels on the same memory, and new random numbers.

What has to hold for that:

* Shapes repeat. Rows are filled up to a few widths and numbers of labels; what fills them has no
  label, so it adds nothing to loss and gradient.
* Memory stays where it is. Inputs are copied into the graph's own; gradients keep their place
  between steps; all graphs share one pool, since no two of them run at once.
* Nothing reads a number of the GPU on the way, and nothing is drawn on the host. A family that does
  (a router, a scan, dropped layers) is found out beforehand, and goes kernel by kernel.
"""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmexp import engine
from llmexp.contracts import Batch, MicroBatch
from llmexp.errors import RunError
from llmexp.loss import IGNORE
from llmexp.memory import oom
from llmexp.precision import Precision

KEPT = 32  # graphs; beyond them the one that was not used for longest is recorded anew
WIDTHS = 8  # of rows: eighths of data.max_length
NUMBERS = 4  # of labels: quarters of the positions
DRAWN_ON_THE_HOST = ("layerdrop", "decoder_layerdrop")  # which layers run
WAITS = "reads numbers of the GPU in a pass, or draws its layers on the host"

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

    def __init__(self, max_length: int) -> None:
        """`max_length`: inputs of a row at most (data.max_length)."""
        self._max_length = max_length
        self._waits: bool | None = None  # such a model goes kernel by kernel; None: not tried yet
        self._passes: OrderedDict[Shape, Pass] = OrderedDict()
        self._weights: list[nn.Parameter] = []  # those that get a gradient
        self._gradients: list[Tensor] = []  # theirs
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        oom.holders.add(self)

    def __call__(
        self, model: nn.Module, batch: Batch, precision: Precision, micro_batch_size: int
    ) -> Tensor:
        """Add the gradient of one optimizer step to the parameters; return its loss."""
        device = next(model.parameters()).device
        total = torch.zeros((), device=device)
        placed = False
        for micro_batch in batch.micro_batches(micro_batch_size):
            rows = filled(micro_batch, self._max_length)
            if self._waits is None:
                self._waits = self._try(model, rows.to(device), precision)
                if self._waits:
                    log.info(f"launch  kernel by kernel: {type(model).__name__} {WAITS}")
            if self._waits:
                return engine.accumulate(model, batch, precision, micro_batch_size)
            if not placed:
                self._place_gradients()
                placed = True
            if rows.shape not in self._passes:
                self._record(model, rows, precision)
            self._passes.move_to_end(rows.shape)
            total += self._passes[rows.shape].run(rows, batch.label_tokens)
        return total

    def give_back(self) -> None:
        """Give back what the graphs hold: memory ran out, here or elsewhere."""
        self._passes.clear()
        self._gradients = []

    def _place_gradients(self) -> None:
        """Put zeros where the graphs add their gradients."""
        if not self._gradients:
            self._gradients = [torch.zeros_like(weight) for weight in self._weights]
        else:
            torch._foreach_zero_(self._gradients)
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient

    def _record(self, model: nn.Module, rows: Rows, precision: Precision) -> None:
        """Record a pass of this shape; nothing of it is computed yet.

        Raises RunError where it cannot be recorded, though trying it found nothing.
        """
        device = next(model.parameters()).device
        still, label_tokens = rows.to(device), torch.ones((), device=device)
        graph = torch.cuda.CUDAGraph()
        with self._aside(device):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # no cached block is given back while recording
            graph.capture_begin(pool=self._pool)
            try:
                loss = self._pass(model, still, label_tokens, precision)
                graph.capture_end()
            except RuntimeError as error:
                with suppress(RuntimeError):
                    graph.capture_end()
                if oom.is_out_of_memory(error):
                    raise
                raise RunError(
                    f"a pass of {type(model).__name__} cannot be recorded as a CUDA graph "
                    f"({oom.first_line(error)}): use train.cuda_graphs=false"
                ) from error
        while len(self._passes) >= KEPT:
            self._passes.popitem(last=False)
        self._passes[still.shape] = Pass(graph, still, label_tokens, loss)

    def _try(self, model: nn.Module, rows: Rows, precision: Precision) -> bool:
        """Say whether a pass has to wait for the GPU, or for what is drawn on the host.

        It runs twice. The first may allocate and compile, and shows which weights get a gradient;
        the second may not wait. Changes neither gradients nor random numbers.
        """
        if any(getattr(model.config, name, None) for name in DRAWN_ON_THE_HOST):
            return True
        device = rows.input_ids.device
        try:
            with self._aside(device), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a mode that is new
                self._pass(model, rows, torch.ones((), device=device), precision)
                self._weights = [w for w in model.parameters() if w.grad is not None]
                torch.cuda.set_sync_debug_mode("error")
                try:
                    self._pass(model, rows, torch.ones((), device=device), precision)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            return True
        finally:
            model.zero_grad(set_to_none=True)
        return False

    @contextmanager
    def _aside(self, device: torch.device) -> Iterator[None]:
        """Work on the stream that records, and leave all random numbers as they were."""
        before, state = torch.get_rng_state(), torch.cuda.get_rng_state(device)
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            torch.cuda.current_stream().wait_stream(self._stream)
            torch.set_rng_state(before)
            torch.cuda.set_rng_state(state, device)

    def _pass(
        self, model: nn.Module, rows: Rows, label_tokens: int | Tensor, precision: Precision
    ) -> Tensor:
        with precision.autocast(rows.input_ids.device):
            return engine.backward(model, rows, label_tokens, precision)


def filled(micro_batch: MicroBatch, max_length: int) -> Rows:
    """Return the rows of a micro-batch, filled up to a shape that others have too.

    Rows are as wide as so many eighths of `max_length`; labels are so many quarters of the
    positions. A filling label points at a position whose target is IGNORE.
    """
    width = micro_batch.input_ids.shape[1]
    extra = max(width, min(ceiling(width, -(-max_length // WIDTHS)), max_length)) - width
    targets = F.pad(micro_batch.targets, (0, extra), value=IGNORE)
    labels = micro_batch.labels + micro_batch.labels // width * extra
    positions = targets.numel()
    number = min(ceiling(len(labels), -(-positions // NUMBERS)), positions)
    if number > len(labels):
        unused = (targets.flatten() == IGNORE).nonzero()[0]
        labels = torch.cat([labels, unused.expand(number - len(labels))])
    position_ids = micro_batch.position_ids
    return Rows(
        input_ids=F.pad(micro_batch.input_ids, (0, extra)),
        targets=targets,
        position_ids=None if position_ids is None else F.pad(position_ids, (0, extra)),
        labels=labels,
    )


def ceiling(number: int, step: int) -> int:
    """Return the next multiple of `step`, from one on."""
    return max(1, -(-number // step)) * step
