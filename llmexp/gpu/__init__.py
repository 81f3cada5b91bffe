"""A training step on a GPU: the same kernels, launched all at once.

* graphs      forward and backward of a pass as one CUDA graph
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmexp.errors import RequestError
from llmexp.memory.budget import GIB

if TYPE_CHECKING:
    import torch

    from llmexp.gpu.graphs import Graphs
    from llmexp.memory.planner import Plan


def launch(wanted: bool | str, fits: Plan, device: torch.device) -> tuple[Graphs | None, str]:
    """Return what runs the passes of a step by CUDA graphs, or None; and a line that says so.

    `wanted` is train.cuda_graphs. Graphs hold what a pass takes, beside all that comes between the
    passes: twice the plan at most. Raises RequestError where they are asked for and cannot be.
    """
    if device.type != "cuda":
        return None, ""
    needed = None if fits.prediction is None else 2 * fits.prediction.total
    room = 0 if fits.budget is None else fits.budget.bytes
    if wanted is False:
        why = "train.cuda_graphs=false"
    elif fits.activation_checkpointing:
        why = "activation checkpointing cannot be recorded"
    elif wanted == "auto" and needed is None:
        why = "CUDA graphs may take twice the memory, and this model's is not known"
    elif wanted == "auto" and needed is not None and needed > room:
        why = (
            f"CUDA graphs may take twice the memory, {needed / GIB:.1f} GiB of {room / GIB:.1f} "
            "(train.cuda_graphs=true tries)"
        )
    else:
        from llmexp.gpu.graphs import Graphs

        return Graphs(), "launch  each pass as one CUDA graph (train.cuda_graphs=auto)"
    if wanted is True:
        raise RequestError(
            f"train.cuda_graphs=true: {why}; use train.cuda_graphs=auto, or "
            "train.activation_checkpointing=false where that fits"
        )
    return None, f"launch  kernel by kernel: {why}"
