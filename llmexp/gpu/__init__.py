"""A training step on a GPU: the same kernels, launched all at once.

* graphs      forward and backward of a pass as one CUDA graph
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmexp.errors import RequestError
from llmexp.memory.budget import GIB

if TYPE_CHECKING:
    import torch

    from llmexp.gpu.graphs import Graphs
    from llmexp.memory.planner import Plan


def launch(
    settings: Mapping[str, Any], fits: Plan, device: torch.device, *, before: bool | None = None
) -> tuple[Graphs | None, str]:
    """Return what runs the passes of a step by CUDA graphs, or None; and a line that says so.

    `before`: whether a run that continues had them; with train.cuda_graphs=auto it keeps to that,
    as what fills a pass up changes which numbers dropout draws. Raises RequestError where graphs
    are asked for and cannot be.
    """
    wanted = settings["train"]["cuda_graphs"]
    why = _why_not(wanted, fits, device, before=before)
    if wanted is True and why:
        raise RequestError(f"train.cuda_graphs=true: {why}; use train.cuda_graphs=auto")
    if device.type != "cuda":
        return None, ""
    if why:
        return None, f"launch  kernel by kernel: {why}"
    from llmexp.gpu.graphs import Graphs

    line = f"launch  each pass as one CUDA graph (train.cuda_graphs={str(wanted).lower()})"
    return Graphs(settings["data"]["max_length"]), line


def _why_not(wanted: bool | str, fits: Plan, device: torch.device, *, before: bool | None) -> str:
    """Say why there are no graphs, or nothing.

    They hold what a pass takes, beside all that comes between the passes: twice the plan at most.
    """
    if device.type != "cuda":
        return "there is no CUDA device here"
    if wanted is False:
        return "train.cuda_graphs=false"
    if fits.activation_checkpointing:
        return "activation checkpointing cannot be recorded"
    if wanted is True or before is True:
        return ""
    if before is False:
        return "as this run began"
    if fits.prediction is None or fits.budget is None:
        return "CUDA graphs may take twice the memory, and this model's is not known"
    needed = 2 * fits.prediction.total
    if needed > fits.budget.bytes:
        return (
            f"CUDA graphs may take twice the memory, {needed / GIB:.1f} GiB of "
            f"{fits.budget.gib:.1f} (train.cuda_graphs=true tries)"
        )
    return ""
