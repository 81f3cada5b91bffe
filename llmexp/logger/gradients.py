"""Histograms of the gradients, for who asks for them: logger.gradients=100."""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmexp.logger import Histogram
from llmexp.logger.worker import NOT_AFFECTED, reason

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

log = logging.getLogger("llmexp")

BINS = 64
Show = Callable[[int, Mapping[str, Histogram]], None]


def watch(
    model: "nn.Module", optimizer: "Optimizer", *, every: int, step: Callable[[], int], show: Show
) -> None:
    """Show the gradients of each parameter as the optimizer takes them, at each `every`th step.

    `step` tells the number of the step that is being taken. Reads and changes nothing; whatever
    goes wrong, memory that is short included, ends the watching and not the step.
    """
    shown: set[int] = set()  # a step may come in several parts

    def look(*_: Any) -> None:
        number = step()
        if number % every or number in shown:
            return
        shown.add(number)
        try:
            found = {
                f"gradients/{name}": histogram(weight.grad)
                for name, weight in model.named_parameters()
                if weight.grad is not None
            }
            show(number, found)
        except Exception as error:
            hook.remove()
            log.warning(f"no more gradients are shown ({reason(error)}); {NOT_AFFECTED}")

    hook = optimizer.register_step_pre_hook(look)


def histogram(values: "Tensor") -> Histogram:
    """Count the finite values of a tensor in bins of the same width."""
    import torch

    known = values.detach().float().flatten()
    known = known[torch.isfinite(known)]
    if not len(known):
        return [0], [0.0, 0.0]
    low, high = (float(end) for end in known.aminmax())
    counts = torch.histc(known, BINS, low, high)
    if low == high:  # torch widens such a range by 1 to both sides
        low, high = low - 1, high + 1
    return counts.long().tolist(), torch.linspace(low, high, BINS + 1).tolist()
