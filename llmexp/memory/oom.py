"""Survive an out-of-memory error inside an optimizer step: same examples, same result.

    for attempt in oom.attempts(model, plan, step):
        with attempt:
            for micro_batch in batch.micro_batches(plan.micro_batch_size):
                accumulate(model, micro_batch, scaler)  # a function: its locals die with it
    optimizer.step()

What has to hold for that, and is easily lost:

* The batch is fetched before and only sliced here, so the sampler never moves on a retry.
* Only the text of the error is kept. Its traceback holds the frames of the forward pass, and they
  hold every activation: a retry inside the `except` block never gets its memory back.
* What the caller's own frame holds of a failed attempt cannot be dropped from here: forward and
  backward belong in a function of their own.
* Gradients may be half summed, so the whole step is redone, from the step's own random numbers.
* The optimizer is outside: an update that ran out of memory half way cannot be redone.
"""

from __future__ import annotations

import gc
import hashlib
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Protocol

import torch

from llmexp.errors import RunError

# what an allocation that failed is called, besides torch.OutOfMemoryError
_CALLED = (
    "DefaultCPUAllocator: can't allocate memory",  # Linux, macOS
    "DefaultCPUAllocator: not enough memory",  # Windows
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class Holder(Protocol):
    """What holds memory that a step can be redone without."""

    def give_back(self) -> None: ...


holders: weakref.WeakSet[Holder] = weakref.WeakSet()  # asked when memory has run out


class Sized(Protocol):
    """What is cut into micro-batches; the size shrinks here. May have an `advice: str` too."""

    micro_batch_size: int
    seed: int


@dataclass(frozen=True)
class Event:
    """Memory ran out in `step` at `failed` rows; it is redone at `micro_batch_size` rows."""

    step: int
    failed: int
    micro_batch_size: int
    error: str

    def line(self) -> str:
        """One line for the person."""
        return (
            f"out of memory in step {self.step} at micro-batch {self.failed}: the whole step is "
            f"redone at micro-batch {self.micro_batch_size}, same examples ({self.error})"
        )

    def as_dict(self) -> dict[str, int | str]:
        """One record for timing.jsonl and W&B."""
        return {"event": "out_of_memory", **asdict(self)}


def step_seed(seed: int, step: int) -> int:
    """Return the seed of the random numbers of optimizer step `step`: of (seed, step) alone."""
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: every generator takes it


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` means that an allocation failed, on the GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CALLED)


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class Attempt:
    """One try at a step: a context manager that keeps only the text of an out-of-memory error."""

    def __init__(self) -> None:
        self.error: str | None = None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None or not is_out_of_memory(error):
            return False
        self.error = first_line(error)
        _forget(error)
        return True


def attempts(
    model: torch.nn.Module,
    plan: Sized,
    step: int,
    *,
    rows: int | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Iterator[Attempt]:
    """Yield tries at one step: another one only after an out-of-memory error, at half the rows.

    Each try starts without gradients and from the random numbers of (plan.seed, step).
    `plan.micro_batch_size` is lowered in place and stays so. `rows`: how many rows the step has, so
    that halving starts below them. Under torch.distributed all ranks retry together. Raises
    RunError when micro-batch 1 does not fit.
    """
    while True:
        torch.manual_seed(step_seed(plan.seed, step))
        attempt = Attempt()
        yield attempt
        if attempt.error is not None:
            _release(model)
        error = _any_rank(attempt.error, next(model.parameters()).device)
        if error is None:
            return
        _release(model)
        failed = plan.micro_batch_size if rows is None else min(plan.micro_batch_size, max(rows, 1))
        if failed == 1:
            raise RunError(_hopeless(plan, step, error=error))
        plan.micro_batch_size = failed // 2
        if on_event is not None:
            on_event(Event(step, failed, plan.micro_batch_size, error))


def _forget(error: BaseException | None) -> None:
    """Drop the locals of every finished frame of `error` and of the errors it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _release(model: torch.nn.Module) -> None:
    """Give back what the failed try holds, and what others hold: gradients, graphs, reference
    cycles, cached blocks."""
    model.zero_grad(set_to_none=True)
    for holder in holders:
        holder.give_back()
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA was not used


def _any_rank(error: str | None, device: torch.device) -> str | None:
    """Return an error if any rank has one, so that all of them retry."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return error
    failed = torch.tensor([error is not None], dtype=torch.int32, device=device)
    torch.distributed.all_reduce(failed, op=torch.distributed.ReduceOp.MAX)
    return error or ("another rank ran out of memory" if failed.item() else None)


def _hopeless(plan: Sized, step: int, *, error: str) -> str:
    advice = getattr(plan, "advice", "") or (
        "Close other programs that use this memory, shorten data.max_length, turn on "
        "train.activation_checkpointing, or choose a smaller model."
    )
    return (
        f"Out of memory in step {step} at micro-batch 1, the smallest there is ({error}). "
        f"The last checkpoint is intact.\n{advice}"
    )
