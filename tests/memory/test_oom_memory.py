"""After an out-of-memory error every byte comes back: fake tensors under a cap that raises it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llmexp.errors import RunError
from llmexp.memory import oom
from llmexp.memory.trace.recorder import Recorder

ROWS, LENGTH, WIDTH, VOCABULARY = 16, 64, 32, 256


@dataclass
class Plan:
    micro_batch_size: int = ROWS
    seed: int = 7


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        logits: torch.Tensor = self.head(hidden)
        return logits


class Training:
    """A model with optimizer states, and the recorder that counts and caps its bytes."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
        self.model = Model()
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.accumulate(1)
        self.update()
        self.at_rest = recorder.live  # parameters, states and the batch

    def accumulate(self, rows: int) -> None:
        for start in range(0, ROWS, rows):
            ids = self.ids[start : start + rows]
            logits = self.model(ids)
            nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self, rows: int) -> None:
        self.accumulate(rows)
        self.update()

    def peak(self, work: Callable[[], None]) -> int:
        """Return the peak of live bytes while `work` runs."""
        events = self.recorder.recording.events
        first, live, highest, sizes = len(events), self.recorder.live, 0, dict[int, int]()
        for storage, size in events:
            sizes[storage] = size or sizes[storage]
        work()
        for storage, size in events[first:]:
            live += size if size else -sizes[storage]
            sizes[storage] = size or sizes[storage]
            highest = max(highest, live)
        return highest


@pytest.fixture
def training() -> Iterator[Training]:
    with FakeTensorMode(), Recorder(torch.device("cpu")) as recorder:
        yield Training(recorder)


def survive(training: Training, plan: Plan) -> list[tuple[int, int]]:
    """Run one step; return (rows, live bytes) at the start of every attempt."""
    seen = []
    for attempt in oom.attempts(training.model, plan, 0):
        seen.append((plan.micro_batch_size, training.recorder.live))
        with attempt:
            training.accumulate(plan.micro_batch_size)
    training.recorder.cap = None
    training.update()
    return seen


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 0.9, 0.97, 0.995])
def test_live_bytes_return_exactly_after_every_failure(training: Training, share: float) -> None:
    """The caps cut the step in the forward pass, in the loss and in the backward pass."""
    full = training.peak(lambda: training.step(ROWS))
    small = training.peak(lambda: training.step(1))
    training.recorder.cap = int(small + share * (full - small))
    plan = Plan()
    seen = survive(training, plan)
    assert [rows for rows, _ in seen] == [ROWS >> i for i in range(len(seen))]
    assert len(seen) > 1, "the cap was felt"
    assert {live for _, live in seen} == {training.at_rest}
    assert plan.micro_batch_size == seen[-1][0]
    assert training.recorder.live == training.at_rest


def test_the_errors_come_from_forward_loss_and_backward(training: Training) -> None:
    full = training.peak(lambda: training.step(ROWS))
    assert {where(training, full, percent) for percent in range(5, 100, 5)} == {
        *("forward", "loss", "backward"),
    }


def where(training: Training, full: int, percent: int) -> str:
    """Return the part of the step that fails with this share of the memory it needs."""
    training.recorder.cap = training.at_rest + (full - training.at_rest) * percent // 100
    names = set()
    try:
        training.accumulate(ROWS)
    except torch.OutOfMemoryError as error:
        names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    training.model.zero_grad()
    if "backward" in names:
        return "backward"
    return "loss" if "cross_entropy" in names else "forward"


def naive(training: Training, rows: int) -> int:
    """Retry inside the except block, as many loops do; return the rows that worked."""
    try:
        training.accumulate(rows)
    except torch.OutOfMemoryError:
        if rows == 1:
            raise
        training.model.zero_grad()
        return naive(training, rows // 2)
    return rows


def test_a_retry_inside_the_except_block_dies_where_ours_lives(training: Training) -> None:
    full = training.peak(lambda: training.step(ROWS))
    small = training.peak(lambda: training.step(1))
    cap = int(small + 0.1 * (full - small))
    training.recorder.cap = cap
    with pytest.raises(torch.OutOfMemoryError):
        naive(training, ROWS)
    training.model.zero_grad()
    training.recorder.cap = cap
    assert survive(training, Plan())[-1][0] >= 1


def test_an_error_that_somebody_keeps_holds_no_memory(training: Training) -> None:
    """As a debugger does, a logger, or an `except` block further out."""
    full = training.peak(lambda: training.step(ROWS))
    training.recorder.cap = training.at_rest + (full - training.at_rest) // 2
    kept, live = list[BaseException](), list[int]()
    for attempt in oom.attempts(training.model, Plan(), 0):
        live.append(training.recorder.live)
        with attempt:
            if not kept:
                keeping(kept, training)
    assert len(kept) == 1 and live == [training.at_rest] * 2


def keeping(kept: list[BaseException], training: Training) -> None:
    try:
        training.accumulate(ROWS)
    except torch.OutOfMemoryError as error:
        kept.append(error)
        raise


def test_micro_batch_one_that_does_not_fit_ends_the_run(training: Training) -> None:
    training.recorder.cap = training.at_rest + 1024
    with pytest.raises(RunError, match="micro-batch 1"):
        survive(training, Plan())
    assert training.recorder.live == training.at_rest


def test_an_error_in_the_update_is_not_survived(training: Training) -> None:
    """Half of the weights may have moved: only the last checkpoint is sure."""
    for attempt in oom.attempts(training.model, Plan(), 0):
        with attempt:
            training.accumulate(ROWS)
    training.recorder.cap = training.recorder.live
    with pytest.raises(torch.OutOfMemoryError):
        training.update()
