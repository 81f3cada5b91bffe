"""How many bytes a card really offers the allocator, and holding a process to them.

A "12 GB" card reports 11.75 GiB under Linux. The CUDA context takes up to 0.50 GiB outside the
allocator, other programs are granted 0.25 GiB, and 3 % of the rest stay free. On Windows the
driver spills into system memory near the limit instead of failing, and training crawls: a cap on
the process turns that into an error that can be survived.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

GIB = 2**30
# GiB, outside the allocator: 0.18 (RTX 3070) to 0.49 (RTX 4090) were reported, 0.61 read on an H200
CONTEXT = 0.50
OTHERS = 0.25  # GiB for other programs on the card
DISPLAY = 0.75  # GiB for a desktop that the same card shows
SHARE = 0.97  # of what is left

# GiB, the smallest totals that CUDA reports under Linux, from out-of-memory messages
REPORTED = {
    "6gb": 5.79,  # RTX 2060, GTX 1660
    "8gb": 7.76,  # RTX 2070, 3070
    "12gb": 11.75,  # RTX 3060, 4070
    "16gb": 14.56,  # T4 with ECC; RTX 4060 Ti, 4080, A4000 report 15.6
    "24gb": 23.64,  # RTX 3090, 4090; the A10 has 22.1: use hw=auto there
    "48gb": 44.40,  # L40, L40S with ECC; the A6000 reports 47.5
    "80gb": 79.15,  # A100, H100
}


@dataclass(frozen=True)
class Budget:
    """What the allocator may take, and why."""

    name: str  # of the hw preset
    gib: float  # cap for the allocator
    reason: str

    @property
    def bytes(self) -> int:
        """The cap in bytes."""
        return int(self.gib * GIB)


def preset(hw: Mapping[str, Any]) -> Budget | None:
    """Return the budget that the settings name, or None where the card at hand decides."""
    if hw["budget_gib"] is None:
        return None
    gib = hw["budget_gib"] - (DISPLAY if hw["display"] else 0)
    shown = f", {DISPLAY:.2f} GiB of it left to the display" if hw["display"] else ""
    return Budget(hw["name"], gib, f"hw={hw['name']}{shown}")


def on_card(hw: Mapping[str, Any], device: torch.device) -> Budget:
    """Return the budget on a real card: what is free now, and no more than a preset says."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    gib = (free + own) * SHARE / GIB - (DISPLAY if hw["display"] else 0)
    card = f"{torch.cuda.get_device_name(device)}, {total / GIB:.2f} GiB"
    found = Budget(hw["name"], gib, f"{card}, of which {(free + own) / GIB:.2f} are free")
    asked = preset(hw)
    if asked is None or asked.gib > found.gib:
        return found
    return Budget(asked.name, asked.gib, f"{asked.reason}, on {card}")


def enforce(budget: Budget, device: torch.device) -> None:
    """Hold this process to the budget, on any card, and pin what the plan assumes.

    Call before the first kernel: cuBLAS reads its workspace size once. cuDNN's attention is left
    out because its memory is not known; what remains is flash, else memory-efficient attention.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8")
    torch.backends.cuda.enable_cudnn_sdp(False)
    total = torch.cuda.mem_get_info(device)[1]
    # it wants the number of the card: "cuda" alone, the current one, is refused
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget.bytes / total), index)
    torch.cuda.reset_peak_memory_stats(index)  # of an earlier run in this process
