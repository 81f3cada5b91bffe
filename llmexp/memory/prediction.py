"""What a step will take, part by part, and how that is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmexp.memory.budget import CONTEXT, GIB, Budget
from llmexp.memory.measure import Request, measure

# of seven published measurements the trace missed up to 3.9 %, all on the low side (tests/memory)
MARGIN = 0.04

ORDER = (
    *("weights", "gradients", "optimizer states", "autocast copies"),
    *("activations", "loss", "workspaces"),
)


@dataclass(frozen=True)
class Prediction:
    """The peak of a training step, in bytes."""

    parts: Mapping[str, int]  # the live bytes at the peak, by kind
    allocated: int  # what torch.cuda.max_memory_allocated will say
    reserved: int  # what the allocator will take from the card
    min_cap: int  # the least it can live with, when it gives cached blocks back
    precision: str

    @property
    def live(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        """What must fit the budget: reserved, and the margin."""
        return round(self.reserved * (1 + MARGIN))

    def table(self, budget: Budget) -> list[str]:
        """Return the parts in GiB, one per line, the total against the budget."""
        rows = [(name, self.parts.get(name, 0)) for name in ORDER]
        rows += [
            ("fragmentation", self.reserved - self.live),
            (f"margin ({MARGIN:.0%})", self.total - self.reserved),
        ]
        lines = [f"  {name:<20}{size / GIB:8.2f} GiB" for name, size in rows if size]
        share = self.total / budget.bytes
        return [
            *lines,
            f"  {'total':<20}{self.total / GIB:8.2f} GiB of {budget.gib:.2f} ({share:.0%})",
            f"  {'CUDA context':<20}{CONTEXT:8.2f} GiB, outside the budget",
        ]


def predict(requests: Sequence[Request]) -> Prediction:
    """Return the largest prediction of the requests: one per number format that may come.

    Raises llmexp.memory.measure.Unmeasurable.
    """
    predictions = [
        Prediction(
            parts=result["parts"],
            allocated=result["allocated"],
            reserved=result["reserved"],
            min_cap=result["min_cap"],
            precision=request.setting.precision,
        )
        for request, result in zip(requests, measure(requests), strict=True)
    ]
    return max(predictions, key=lambda prediction: prediction.reserved)
