"""In which number format the matrix products run."""

from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import torch
from torch import nn

from llmexp.errors import RequestError

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "bf16_parameters": torch.bfloat16,  # the weights too, and so the gradients
}
NARROW = 384  # below this width fp32 was faster on such a CPU (128 wide: 29 against 47 ms a step)


class Precision:
    """Autocast, loss scaling and TF32 for one run. Weights, gradients and optimizer stay in fp32,
    but for bf16_parameters, where weights and gradients are bf16 (llmexp/optimizer.py rounds).

    `scaler` scales the loss in fp16; in all else it is disabled, hence a no-op.
    """

    def __init__(self, *, name: str, tf32: bool) -> None:
        """Take `name` (auto or one of DTYPES) as asked for; `choose` settles it for a device."""
        if name not in ("auto", *DTYPES):
            raise RequestError(f"precision.name={name} is none of auto, {', '.join(DTYPES)}")
        self.name = name
        self.tf32 = tf32
        self.reason = "as asked"
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)

    def choose(self, device: torch.device, *, width: int | None = None) -> "Precision":
        """Settle `auto` for `device` and a model `width` wide, and refuse what it cannot compute.

        Raises RequestError where a GPU has no bf16 (compute capability below 8.0).
        """
        if self.name == "auto":
            self.name, self.reason = automatic(device, width)
        elif (
            self.dtype == torch.bfloat16
            and device.type == "cuda"
            and torch.cuda.get_device_capability(device) < (8, 0)
        ):
            card = torch.cuda.get_device_name(device)
            raise RequestError(
                f"precision={self.name} needs compute capability 8.0; {card} has less: "
                "use precision=fp16"
            )
        if device.type == "cuda":
            torch.backends.cuda.matmul.fp32_precision = "tf32" if self.tf32 else "ieee"
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the matrix products."""
        return DTYPES[self.name]

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """Return the autocast context of one forward pass; a no-op where the weights have the
        format of the matrix products already."""
        casts = self.name in ("bf16", "fp16")
        return torch.autocast(device.type, dtype=self.dtype, enabled=casts)

    def cast_weights(self, model: nn.Module) -> None:
        """Put the weights into bf16 where the name says so; buffers and tied weights stay as such.

        On a GPU by way of the host, so that no memory of the card is left in pieces.
        """
        if self.name != "bf16_parameters":
            return
        device = next(model.parameters()).device
        if device.type == "cuda":
            model.to("cpu")
        for parameter in model.parameters():
            parameter.data = parameter.data.to(self.dtype)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            model.to(device)


def automatic(device: torch.device, width: int | None = None) -> tuple[str, str]:
    """Choose the fastest safe number format of `device`; return its name and the reason in
    words."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        card = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        if major >= 8:
            return "bf16", f"{card}: bf16 is native from 8.0 on"
        if (major, minor) >= (7, 0) and "GTX 16" not in card:
            return "fp16", f"{card}: tensor cores for fp16, no bf16"
        return "fp32", f"{card}: no tensor cores"
    if not torch.cpu._is_avx512_bf16_supported():
        return "fp32", "this CPU has no bf16 arithmetic"
    if width is not None and width < NARROW:
        return "fp32", f"a model {width} wide spends more on casts than bf16 saves on this CPU"
    if not multiplies_bf16():
        return "fp32", "this CPU has no AMX, and without it bf16 is slower"
    return "bf16", "this CPU multiplies in bf16"


@cache
def multiplies_bf16() -> bool:
    """Say whether matrix products on this CPU are faster in bf16 than in fp32.

    Of GPT-2's shapes, on one core of a Xeon without AMX: 83 against 154 GFLOP/s.
    """
    return torch.cpu._is_avx512_bf16_supported() and (
        torch.cpu._is_amx_tile_supported() or is_amd()
    )


def is_amd() -> bool:
    """Say whether the CPU is AMD's, whose avx512_bf16 is twice as fast as fp32 (Zen 4)."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return False
