"""What a contestant of benchmarks/peers.py tells while it trains, and the loss it ends with."""

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from peer_work import Examples, Task
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Meter:
    """Notes loss, tokens and seconds of the steps; a line of the report every so many of them."""

    def __init__(self, task: Task, examples: Examples) -> None:
        """Take the tokens of each step from the examples; see `share_evenly`."""
        self.task, self.examples = task, examples
        self.labels = examples.labels(task.work.batch)
        self._losses: list[Tensor] = []
        self._step, self._seconds, self._since = 0, 0.0, 0.0

    def share_evenly(self, steps: int, used: float = 1.0) -> None:
        """Give each of `steps` steps as many tokens, where rows are not the examples; `used`: the
        share of the examples that they hold."""
        self.labels = [sum(self.labels) * used / steps] * steps

    def begin(self) -> None:
        """Start the clock of the steps."""
        wait_for_device()
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock, for what is no training step; `begin` starts it again."""
        wait_for_device()
        self._seconds += time.perf_counter() - self._since

    def step(self, loss: Tensor) -> None:
        """Note a finished step, and its loss in nats per token."""
        self._step += 1
        self._losses.append(loss.detach())
        if self._step in (1, len(self.labels)) or self._step % self.task.every == 0:
            mean = torch.stack(self._losses).mean().item()
            self._losses.clear()
            self.row(self._step, mean)

    def row(self, step: int, loss: float) -> None:
        """Write a line: the mean loss of the steps since the last one."""
        wait_for_device()
        seconds = self._seconds + time.perf_counter() - self._since
        tokens = sum(self.labels[:step])
        self.tell(step=step, loss=loss, tokens=tokens, seconds=seconds)

    def done(self) -> None:
        """Say that the run has ended as a user's would: its model is saved."""
        self.tell(event="done", peak=peak())

    def judge(self, logits_of: Callable[[Tensor], Tensor]) -> None:
        """Say the loss on the validation examples, the same way for all: mean over the tokens."""
        nats, count = 0.0, 0
        with torch.no_grad(), autocast(self.task):
            for first in range(0, len(self.examples.validation), 8):
                rows = padded(self.examples.validation[first : first + 8])
                targets = shifted(rows["labels"])
                logits = logits_of(rows["input_ids"]).float().flatten(0, 1)
                nats += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
                count += int((targets != IGNORE).sum())
        self.tell(event="judged", loss=nats / count)

    def tell(self, **what: Any) -> None:
        """Append a line to the report."""
        with self.task.report.open("a") as file:
            file.write(json.dumps({**what, "clock": time.time()}) + "\n")


def device() -> torch.device:
    """Return the GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait_for_device() -> None:
    """Wait until all that was asked for is computed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak() -> float | None:
    """Return the peak of the GPU's memory in GiB; None: the driver looks at the process."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def autocast(task: Task) -> torch.autocast:
    """Return the context of a forward pass."""
    dtype = DTYPES[task.precision]
    return torch.autocast(device().type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def padded(found: list[list[int]], width: int | None = None) -> dict[str, Tensor]:
    """Return rows of one example each, padded to `width` or to the longest, on the device."""
    width = width or max(len(ids) for ids in found)
    input_ids = torch.zeros(len(found), width, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(found):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    labels = input_ids.masked_fill(mask == 0, IGNORE)
    rows = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device()) for name, tensor in rows.items()}


def shifted(labels: Tensor) -> Tensor:
    """Return the token that follows each position, IGNORE after the last."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE)
