"""How fast a run goes, and how much memory it takes: the rows of timing.jsonl."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from llmexp.contracts import Batch, Batches, MicroBatch
from llmexp.engine import Plan, State
from llmexp.forecast import Forecast
from llmexp.precision import Precision
from llmexp.utilisation import Done, Utilisation, sizes


class Watched:
    """Batches, how long they let the training wait, and how much they brought."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.waited = 0.0  # seconds
        self.inputs, self.pairs = 0, 0  # as in llmexp.utilisation.Done
        self.largest = 0  # tokens of a pass, padding included

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
        inputs, pairs = 0, 0
        while True:
            began = time.perf_counter()
            micro_batch = next(rows, None)
            self.owner.waited += time.perf_counter() - began
            if micro_batch is None:  # not reached by a step that is redone for want of memory
                self.owner.inputs += inputs
                self.owner.pairs += pairs
                return
            self.owner.largest = max(self.owner.largest, micro_batch.segments.numel())
            more = sizes(micro_batch.segments)
            inputs, pairs = inputs + more[0], pairs + more[1]
            yield micro_batch


class Pace:
    """Measures the time between one row and the next, and forecasts what is left."""

    def __init__(self, batches: Watched, plan: Plan) -> None:
        self._batches, self._plan = batches, plan
        self._forecast = Forecast(plan, State())
        self._utilisation: Utilisation | None = None
        self.tokens_per_second = math.nan  # lately
        self.mfu = math.nan  # lately: model FLOP utilisation
        self._mark(State())

    def start(self, state: State, model: nn.Module, precision: Precision) -> None:
        """Measure from where `state` stands; looks at the peak of the machine first."""
        self._utilisation = Utilisation(model, precision)
        self._mark(state)
        self._forecast = Forecast(self._plan, state)

    def _mark(self, state: State) -> None:
        self._seconds, self._waited = state.seconds, self._batches.waited
        self._done = Done(self._batches.inputs, self._batches.pairs, state.tokens)

    def row(self, state: State, *, validated: bool) -> dict[str, float]:
        """Return what is to be said of the steps since the row before."""
        seconds, waited = state.seconds - self._seconds, self._batches.waited - self._waited
        before = self._done
        self._mark(state)
        done = Done(
            self._done.inputs - before.inputs,
            self._done.pairs - before.pairs,
            self._done.labels - before.labels,
        )
        row = {"perf/seconds": state.seconds}
        if seconds > 0:
            self.tokens_per_second = row["perf/tokens_per_second"] = done.labels / seconds
            row["perf/data_share"] = waited / seconds  # of the time, waiting for examples
            row |= self._use(done, seconds)
        return row | self._forecast.row(state, validated=validated) | peak_memory()

    def _use(self, done: Done, seconds: float) -> dict[str, float]:
        if self._utilisation is not None:
            self.mfu = self._utilisation.share(done, seconds)
        return {} if math.isnan(self.mfu) else {"perf/mfu": self.mfu}


def peak_memory() -> dict[str, float]:
    """Return the peak of the GPU's memory so far in GiB, where there is a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {"memory/peak_gib": torch.cuda.max_memory_allocated() / 2**30}
