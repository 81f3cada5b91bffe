"""The attention kernel a card would run, and the memory that kernel takes for itself.

PyTorch chooses the kernel by the real device; on the fake GPU it is named. Sources: pytorch
aten/src/ATen/native/transformers/cuda/{sdp_utils.cpp,attention.cu,attention_backward.cu} and
flash_attn/flash_api.cpp, version 2.13.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from llmexp.memory.setting import Kernel

aten = torch.ops.aten
_kernel: Kernel = "flash"
_libraries: list[torch.library.Library] = []


@contextlib.contextmanager
def using(kernel: Kernel) -> Iterator[None]:
    """Let attention run as `kernel`, or as the next one that can: flash, efficient, math."""
    global _kernel
    before, _kernel = _kernel, kernel
    try:
        yield
    finally:
        _kernel = before


def register() -> None:
    """Take attention over above autograd: the kernels have derivatives of their own."""
    library = torch.library.Library("aten", "IMPL", "AutogradPrivateUse1")
    library.impl("scaled_dot_product_attention", scaled_dot_product_attention)
    _libraries.append(library)


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Run attention as the chosen kernel does; all shapes [batch, heads, tokens, head width]."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    if _kernel == "flash" and half and attn_mask is None and value.shape[-1] <= 256:
        width = query.shape[-1]
        query, key, value = (_pad(t, 8) for t in (query, key, value))
        scale = scale if scale is not None else 1 / math.sqrt(width)
        output = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
        return output[..., :width]  # type: ignore[no-any-return]
    bias = None if attn_mask is None else _bias(attn_mask, query, aligned=not enable_gqa)
    if not enable_gqa:
        needs_gradient = query.requires_grad or key.requires_grad or value.requires_grad
        return aten._scaled_dot_product_efficient_attention(  # type: ignore[no-any-return]
            query, key, value, bias, needs_gradient, dropout_p, is_causal, scale=scale
        )[0]
    repeats = query.shape[1] // key.shape[1]  # the efficient kernel cannot share heads
    key, value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
    return _math(query, key, value, bias=bias, dropout_p=dropout_p, is_causal=is_causal)


def _pad(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    extra = -tensor.shape[-1] % multiple
    return torch.nn.functional.pad(tensor, [0, extra]) if extra else tensor


def _bias(mask: torch.Tensor, query: torch.Tensor, *, aligned: bool) -> torch.Tensor:
    """Turn a mask into what is added to the scores, with rows of a multiple of 16 bytes."""
    if mask.dtype == torch.bool:
        bias = torch.zeros_like(mask, dtype=query.dtype)
        bias.masked_fill_(mask.logical_not(), -math.inf)
        mask = bias
    if aligned and mask.shape[-1] % 16:
        mask = _pad(mask, 16)[..., : mask.shape[-1]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], mask.shape[-1])


def _math(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
) -> torch.Tensor:
    """Attention without a kernel: 16-bit inputs are computed in float32."""
    dtype = query.dtype
    query, key, value = (t.float() for t in (query, key, value))
    scores = (query * 1.0) @ (key * 1.0).transpose(-2, -1)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        bias = _bias(mask, query, aligned=False)
    if bias is not None:
        scores = scores + bias
    return (torch.dropout(torch.softmax(scores, -1), dropout_p, True) @ value).to(dtype)


def kernel_temporaries(func: Any, args: tuple[Any, ...]) -> list[int]:
    """Return the bytes that a kernel takes at once inside a call, which no tensor shows.

    The backward of attention sums the gradient of the queries in float32 and keeps one float32 per
    query row; the rows are rounded to 128, the head width to 32. The efficient kernel sums those of
    keys and values likewise where heads are wider than 64.
    """
    if func is aten._scaled_dot_product_flash_attention_backward.default:
        return _query_sums(args[1], rows=128)
    if func is aten._scaled_dot_product_efficient_attention_backward.default:
        if args[1].dtype == torch.float32:  # the output itself holds the sums
            return [args[1].numel() * 4, _query_sums(args[1], rows=32)[1]]
        wide = args[1].shape[-1] > 64
        others = [_query_sums(t, rows=64)[0] for t in args[2:4]] if wide else []
        return [*_query_sums(args[1], rows=64), *others]
    return []


def _query_sums(query: torch.Tensor, *, rows: int) -> list[int]:
    batch, heads, tokens, width = query.shape
    padded = math.ceil(tokens / rows) * rows
    return [4 * batch * heads * padded * (math.ceil(width / 32) * 32), 4 * batch * heads * padded]
