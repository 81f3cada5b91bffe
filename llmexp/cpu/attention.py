"""Attention on a CPU: dropout inside, and of a packed row only what its examples see.

PyTorch's fused kernel for CPUs takes no dropout, and computes what the mask of packed examples
hides. Here queries go through in tiles, whose scores stay in the cache, against the keys that any
of them sees. What they see is made again in backward.

Where the CPU multiplies in bf16, the products of bf16 operands are made in bf16, which rounds each
score to 8 bits. So what is rounded is its distance to the highest score of its query, which is
small where it matters: then the errors are at most 1.5 times those of PyTorch's kernel, which keeps
scores in float32; with the scores themselves they are five times as large.

Shapes: B rows, H heads, T positions, D width of a head; N = B H of a tile.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llmexp.cpu.dropout import Masks, seed_of_a_mask
from llmexp.precision import multiplies_bf16

NAME = "llmexp_cpu"
QUERIES = 64  # of a tile; its scores, over as many rows as that takes:
SCORES = 1 << 18
SHORT = 128  # positions: packed rows up to this share tiles; in a longer one a tile sees few keys
QUERIES_BF16, SCORES_BF16 = 128, 1 << 22  # oneDNN likes them larger


def install(model: Any) -> None:
    """Let `model` attend by this module wherever it would by PyTorch's fused kernel."""
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: Tensor,  # [B, H, T, D]
    key: Tensor,  # [B, H or a divisor of it, T, D]
    value: Tensor,
    attention_mask: Tensor | None,  # bool [B, 1, T, T], true where a query sees a key; None: causal
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return what the heads see, [B, T, H, D]; the signature is that of transformers."""
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if not (torch.is_grad_enabled() and fits(query, key, value, attention_mask, is_causal)):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    seed = seed_of_a_mask() if dropout else 0
    if torch.is_autocast_enabled("cpu"):  # as of PyTorch's kernel; RoPE leaves queries in float32
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (part.to(dtype) for part in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        result: Tensor = Attention.apply(  # type: ignore[no-untyped-call]
            query, key, value, attention_mask, scale, dropout, seed
        )
    return result.transpose(1, 2), None


def fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    """Say whether this is plain self-attention on a CPU."""
    rows, _, length, _ = query.shape
    return (
        query.device.type == "cpu"
        and key.shape[2] == length
        and value.shape[-1] == query.shape[-1]
        and (is_causal if mask is None else mask.dtype == torch.bool)
        and (mask is None or mask.shape == (rows, 1, length, length))
    )


class Attention(torch.autograd.Function):
    """softmax(mask(Q K^T scale)) with dropout, times V; of [B, H, T, D] each."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        dropout: float,
        seed: int,
    ) -> Tensor:
        masks = Masks(dropout, seed) if dropout else None
        q, k, v = _operand(query), _operand(key), _operand(value)
        out = _zeros(q)
        ctx.tops = []
        for rows, queries, keys in _tiles(mask, q):
            bias = _bias(mask, rows, queries, keys, q)
            q_tile, k_tile = _part(q, rows, queries), _part(k, rows, keys)
            seen, top = _seen(q_tile, k_tile, bias, scale)
            if masks is not None:
                masks.apply(seen)
            _put(out, rows, queries, torch.bmm(seen, _part(v, rows, keys)))
            ctx.tops.append(top)
        ctx.save_for_backward(query, key, value, mask)
        ctx.settings = scale, dropout, seed
        return out.mul_(1 / (1 - dropout)).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        scale, dropout, seed = ctx.settings
        masks = Masks(dropout, seed) if dropout else None
        q, k, v = _operand(query), _operand(key), _operand(value)
        d_out = _operand(upstream * (1 / (1 - dropout)))
        d_q, d_k, d_v = _zeros(q), *(torch.zeros_like(k, dtype=_exact(k.dtype)) for _ in range(2))
        for (rows, queries, keys), top in zip(_tiles(mask, q), ctx.tops, strict=True):
            bias = _bias(mask, rows, queries, keys, q)
            q_tile, k_tile = _part(q, rows, queries), _part(k, rows, keys)
            seen, _ = _seen(q_tile, k_tile, bias, scale, top)
            d_tile = _part(d_out, rows, queries)
            d_seen = torch.bmm(d_tile, _part(v, rows, keys).transpose(1, 2))
            kept = seen
            if masks is not None:
                kept = seen.clone()
                masks.apply(kept, d_seen)
            _add(d_v, rows, keys, torch.bmm(kept.transpose(1, 2), d_tile))
            d_scores = torch._softmax_backward_data(d_seen, seen, -1, seen.dtype)
            _put(d_q, rows, queries, torch.bmm(d_scores, k_tile))
            _add(d_k, rows, keys, torch.bmm(d_scores.transpose(1, 2), q_tile))
        grads = (grad.to(query.dtype) for grad in (d_q.mul_(scale), d_k.mul_(scale), d_v))
        return (*grads, None, None, None, None)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _operand(values: Tensor) -> Tensor:
    """Return [B, H, T, D] without gaps, in the number format of the products."""
    natively = values.dtype == torch.bfloat16 and multiplies_bf16()
    return values.to(values.dtype if natively else _exact(values.dtype)).contiguous()


def _zeros(like: Tensor) -> Tensor:
    """Return zeros [B, H, T, D] that lie in memory as [B, T, H, D], as the model wants them."""
    rows, heads, length, width = like.shape
    return like.new_zeros(rows, length, heads, width).transpose(1, 2)


def _tiles(mask: Tensor | None, q: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield (rows, queries, the keys that any of these sees)."""
    count, heads, length, _ = q.shape
    narrow = q.dtype == torch.bfloat16
    size, scores = (QUERIES_BF16, SCORES_BF16) if narrow else (QUERIES, SCORES)
    shares = mask is None or length <= SHORT
    some = max(1, scores // (heads * min(size, length) * length)) if shares else 1
    for row, start in itertools.product(range(0, count, some), range(0, length, size)):
        rows, end = slice(row, min(row + some, count)), min(start + size, length)
        if mask is None:
            yield rows, slice(start, end), slice(0, end)
            continue
        seen = mask[rows, 0, start:end].any((0, 1)).nonzero()
        if len(seen):
            yield rows, slice(start, end), slice(int(seen[0]), int(seen[-1]) + 1)


def _part(values: Tensor, rows: slice, positions: slice) -> Tensor:
    """Return [N, positions, D]; in bf16 without gaps, else oneDNN copies it for each product."""
    part = values[rows, :, positions].flatten(0, 1)
    return part.contiguous() if part.dtype == torch.bfloat16 else part


def _put(total: Tensor, rows: slice, positions: slice, part: Tensor) -> None:
    total[rows, :, positions] = part.view(-1, total.shape[1], *part.shape[1:])


def _add(total: Tensor, rows: slice, positions: slice, part: Tensor) -> None:
    total[rows, :, positions] += part.view(-1, total.shape[1], *part.shape[1:])


def _bias(mask: Tensor | None, rows: slice, queries: slice, keys: slice, like: Tensor) -> Tensor:
    """Return what is added to scores, [1 or N, queries, keys]: -inf where a key is hidden, else 0.

    A query that would see nothing (padding) sees all instead: it must not become NaN.
    """
    if mask is None:
        shape = 1, queries.stop - queries.start, keys.stop
        hidden = torch.ones(shape, dtype=torch.bool).triu_(queries.start + 1)
    else:
        hidden = ~mask[rows, 0, queries, keys]
        hidden &= ~hidden.all(-1, keepdim=True)
    bias = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, -math.inf)
    return bias if len(bias) == 1 else bias.repeat_interleave(like.shape[1], 0)


def _seen(
    q: Tensor, k: Tensor, bias: Tensor, scale: float, top: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the probabilities [N, queries, keys] with which queries see keys, and in bf16 the
    highest score of each query, [N, queries, 1], if it is not known."""
    keys = k.transpose(1, 2)
    if q.dtype == torch.bfloat16:
        if top is None:
            top = torch.baddbmm(bias, q, keys, alpha=scale).amax(-1, keepdim=True)
        bias = bias - top
    scores = torch.baddbmm(bias, q, keys, alpha=scale)
    return torch.softmax(scores, -1, out=scores), top
