"""The micro-batch where there is no GPU: by a sensible number of tokens and the memory at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

GIB = 2**30
TOKENS = 4096  # per forward pass: more is no faster on a CPU
PYTHON = 300 << 20  # bytes of Python with PyTorch and transformers


def micro_batch_size(settings: Mapping[str, Any], *, free: int | None) -> tuple[int, str]:
    """Return the rows per forward pass with `free` bytes, and the line that says why."""
    length = settings["data"]["max_length"]
    wanted, batch_size = settings["train"]["micro_batch_size"], settings["train"]["batch_size"]
    rows = min(batch_size, max(1, TOKENS // length) if wanted == "auto" else wanted)
    architecture = settings["model"]["architecture"]
    if not architecture or free is None:
        needed, cut = None, rows
    else:
        cut = rows
        while wanted == "auto" and cut > 1 and estimate(architecture, cut * length) > free:
            cut = math.ceil(cut / 2)
        needed = estimate(architecture, cut * length)
    return cut, _line(cut, length, needed=needed, free=free)


def estimate(architecture: Mapping[str, int], tokens: int) -> float:
    """Return roughly the bytes that training a GPT-2 in float32 takes on the CPU.

    Python itself, the state of training, 50 bytes per token, layer and width (traced with a fused
    GELU, whose result is not kept), three copies of the logits of up to 1,024 tokens.
    """
    width, layers = architecture["n_embd"], architecture["n_layer"]
    logits = 12 * min(tokens, 1024) * architecture["vocab_size"]
    return PYTHON + 4 * bytes_of_weights(architecture) + 50 * tokens * layers * width + logits


def bytes_of_weights(architecture: Mapping[str, int]) -> int:
    """Return the bytes of a GPT-2's weights; gradients and each of AdamW's moments take as many."""
    width, layers = architecture["n_embd"], architecture["n_layer"]
    vocabulary, positions = architecture["vocab_size"], architecture["n_positions"]
    return 4 * ((vocabulary + positions) * width + layers * (12 * width**2 + 13 * width))


def _line(rows: int, length: int, *, needed: float | None, free: int | None) -> str:
    line = f"memory  CPU: micro-batch {rows} x {length} tokens"
    if needed is None or free is None:
        return line
    line += f", about {needed / GIB:.1f} GiB of the {free / GIB:.1f} available (estimate)"
    return line if needed < free else line + ": this will swap or fail; choose a smaller model"
