"""Attention on a CPU: dropout inside, and of a packed row only what its examples see.

PyTorch's fused kernel for CPUs takes no dropout, and computes what the mask of packed examples
hides. Here queries go through in blocks, whose scores stay in the cache, against the keys that any
of them sees. Scores are float32 whatever the model computes in; they are made again in backward.

Shapes: B rows, H heads, T positions, D width of a head.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llmexp.cpu.dropout import Masks, apply_mask, seed_of_a_mask

NAME = "llmexp_cpu"
BLOCK = 64  # queries
SCORES = 1 << 18  # at a time, over as many rows as that takes


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
    gains = dropout or attention_mask is not None or query.dtype == torch.bfloat16
    applies = torch.is_grad_enabled() and fits(query, key, value, attention_mask, is_causal)
    if not (gains and applies):
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
        q, k, v = _exact(query) * scale, _exact(key), _exact(value)
        out = _zeros(q)
        for rows, queries, keys in _blocks(mask, q.shape):
            q_block, k_block = q[rows, :, queries], k[rows, :, keys]
            seen = _seen(q_block, k_block, None if mask is None else mask[rows, :, queries, keys])
            if masks is not None:
                apply_mask(seen, masks.draw(seen.shape))
            out[rows, :, queries] = seen @ v[rows, :, keys]
        out = out.mul_(1 / (1 - dropout)).to(query.dtype)
        ctx.save_for_backward(query, key, value, mask, out)
        ctx.settings = scale, dropout, seed
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out = ctx.saved_tensors
        scale, dropout, seed = ctx.settings
        masks = Masks(dropout, seed) if dropout else None
        q, k, v, d_out = _exact(query) * scale, _exact(key), _exact(value), _exact(upstream)
        # of softmax's derivative: sum_j P_ij dP_ij, which is dO_i O_i (FlashAttention, section 3.1)
        mean = (d_out * out).sum(-1, keepdim=True)
        d_out = d_out * (1 / (1 - dropout))
        d_q, d_k, d_v = (_zeros(q) for _ in range(3))
        for rows, queries, keys in _blocks(mask, q.shape):
            q_block, k_block = q[rows, :, queries], k[rows, :, keys]
            seen = _seen(q_block, k_block, None if mask is None else mask[rows, :, queries, keys])
            d_block = d_out[rows, :, queries]
            d_scores = d_block @ v[rows, :, keys].transpose(2, 3)
            kept = seen
            if masks is not None:
                drawn = masks.draw(seen.shape)
                kept = apply_mask(seen.clone(), drawn)
                apply_mask(d_scores, drawn)
            d_v[rows, :, keys] += kept.transpose(2, 3) @ d_block
            d_scores.sub_(mean[rows, :, queries]).mul_(seen)
            d_q[rows, :, queries] = d_scores @ k_block
            d_k[rows, :, keys] += d_scores.transpose(2, 3) @ q_block
        grads = (grad.to(query.dtype) for grad in (d_q.mul_(scale), d_k, d_v))
        return (*grads, None, None, None, None)


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _zeros(like: Tensor) -> Tensor:
    """Return zeros [B, H, T, D] that lie in memory as [B, T, H, D], as the model wants them."""
    rows, heads, length, width = like.shape
    return like.new_zeros(rows, length, heads, width).transpose(1, 2)


def _blocks(mask: Tensor | None, shape: torch.Size) -> Iterator[tuple[slice, slice, slice]]:
    """Yield (rows, queries, the keys that any of these sees)."""
    count, heads, length, _ = shape
    some = 1 if mask is not None else max(1, SCORES // (heads * min(BLOCK, length) * length))
    for row in range(0, count, some):
        rows = slice(row, min(row + some, count))
        for start in range(0, length, BLOCK):
            end = min(start + BLOCK, length)
            if mask is None:
                yield rows, slice(start, end), slice(0, end)
                continue
            seen = mask[row, 0, start:end].any(0).nonzero()
            if len(seen):
                yield rows, slice(start, end), slice(int(seen[0]), int(seen[-1]) + 1)


def _seen(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Return the probabilities [rows, H, queries, keys] with which queries see keys."""
    scores = q @ k.transpose(2, 3)
    if mask is None:  # the last keys are those of the queries themselves
        size = q.shape[2]
        later = torch.ones(size, size, dtype=torch.bool).triu_(1)
        scores[..., -size:].masked_fill_(later, -math.inf)
    else:  # not -inf: a query that sees nothing (padding) must not become NaN
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)
