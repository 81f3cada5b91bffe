"""How fast a run goes, and how much memory it takes: the rows of timing.jsonl."""

import math

import torch

from llmexp.engine import State


class Pace:
    """Measures the tokens per second between one row and the next."""

    def __init__(self) -> None:
        self.tokens_per_second = math.nan  # lately
        self._seconds, self._tokens = 0.0, 0

    def start(self, state: State) -> None:
        """Measure from where `state` stands."""
        self._seconds, self._tokens = state.seconds, state.tokens

    def row(self, state: State) -> dict[str, float]:
        """Return what is to be said of the steps since the row before."""
        seconds, tokens = state.seconds - self._seconds, state.tokens - self._tokens
        self.start(state)
        row = {"perf/seconds": state.seconds}
        if seconds > 0:
            self.tokens_per_second = row["perf/tokens_per_second"] = tokens / seconds
        return row | peak_memory()


def peak_memory() -> dict[str, float]:
    """Return the peak of the GPU's memory so far in GiB, where there is a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {"memory/peak_gib": torch.cuda.max_memory_allocated() / 2**30}
