"""How fast a run goes, and how much memory it takes: the rows of timing.jsonl."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from llmexp.engine import Batch, Batches, MicroBatch, State


class Watched:
    """Batches, and how long they let the training wait."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.waited = 0.0  # seconds

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch."""
        return self._batches.steps_per_epoch

    def __getitem__(self, step: int) -> "WatchedBatch":
        """Return the batch of a step."""
        began = time.perf_counter()
        batch = self._batches[step]
        self.waited += time.perf_counter() - began
        return WatchedBatch(batch, self)


@dataclass(frozen=True)
class WatchedBatch:
    """A batch, and how long its rows let the training wait."""

    batch: Batch
    owner: Watched

    @property
    def label_tokens(self) -> int:
        """The label tokens of the step."""
        return self.batch.label_tokens

    @property
    def indices(self) -> tuple[int, ...]:
        """The numbers of its examples."""
        return self.batch.indices

    def micro_batches(self, micro_batch_size: int) -> Iterator[MicroBatch]:
        """Yield the rows of each forward pass."""
        rows = self.batch.micro_batches(micro_batch_size)
        while True:
            began = time.perf_counter()
            micro_batch = next(rows, None)
            self.owner.waited += time.perf_counter() - began
            if micro_batch is None:
                return
            yield micro_batch


class Pace:
    """Measures the tokens per second between one row and the next."""

    def __init__(self, batches: Watched) -> None:
        self._batches = batches
        self.tokens_per_second = math.nan  # lately
        self._seconds, self._tokens, self._waited = 0.0, 0, 0.0

    def start(self, state: State) -> None:
        """Measure from where `state` stands."""
        self._seconds, self._tokens = state.seconds, state.tokens
        self._waited = self._batches.waited

    def row(self, state: State) -> dict[str, float]:
        """Return what is to be said of the steps since the row before."""
        seconds, tokens = state.seconds - self._seconds, state.tokens - self._tokens
        waited = self._batches.waited - self._waited
        self.start(state)
        row = {"perf/seconds": state.seconds}
        if seconds > 0:
            self.tokens_per_second = row["perf/tokens_per_second"] = tokens / seconds
            row["perf/data_share"] = waited / seconds  # of the time, waiting for examples
        return row | peak_memory()


def peak_memory() -> dict[str, float]:
    """Return the peak of the GPU's memory so far in GiB, where there is a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {"memory/peak_gib": torch.cuda.max_memory_allocated() / 2**30}
