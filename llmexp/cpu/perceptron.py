"""GPT-2's perceptron on a CPU: what its GELU gives is made again in backward, not kept.

It is the widest thing that a block keeps, a quarter of its activations, and a cheap pass. Cheaper
than PyTorch's, whose tanh is slow: 1 + tanh(z) is 2 sigmoid(2 z), here in pieces that stay in the
cache.

    gelu(x) = x s,    gelu'(x) = s + x s (1 - s) u',    s = sigmoid(u),    u = A x + C x^3

Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415, the approximation by tanh.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

A = math.sqrt(8 / math.pi)
C = 0.044715 * A
PIECE = 1 << 18  # elements


class Product(torch.autograd.Function):
    """gelu(wide) weight + bias; shapes [N, W], [W, D], [D]."""

    @staticmethod
    def forward(ctx: Any, wide: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(wide, weight, bias)
        return torch.addmm(bias, gelu(wide), weight)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        wide, weight, bias = ctx.saved_tensors
        d_wide = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            d_active = upstream @ weight.to(upstream.dtype).t()
            d_wide, active = gelu_backward_(d_active, wide)
        else:
            active = gelu(wide)
        if ctx.needs_input_grad[1]:
            d_weight = (active.t() @ upstream).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            d_bias = upstream.sum(0).to(bias.dtype)
        return d_wide, d_weight, d_bias


def gelu(wide: Tensor) -> Tensor:
    """Return gelu(wide), of the same shape and number format."""
    wide = wide.contiguous()
    active = torch.empty_like(wide)
    for part, result in _pieces(wide, active):
        x = _exact(part)
        result.copy_(_u(x).sigmoid_().mul_(x))
    return active


def gelu_backward_(upstream: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of `wide`, in place of `upstream`, that of gelu(wide); and gelu(wide)."""
    wide = wide.contiguous()
    active = torch.empty_like(wide)
    for grad, part, result in _pieces(upstream, wide, active):
        x = _exact(part)
        u = _u(x)
        s = u.sigmoid()
        slope = u.mul_(3).sub_(x, alpha=2 * A)  # x u'
        torch.ops.aten.sigmoid_backward.grad_input(slope, s, grad_input=slope)
        grad.copy_(slope.add_(s).mul_(grad))
        result.copy_(s.mul_(x))
    return upstream, active


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(*(tensor.view(-1).split(PIECE) for tensor in tensors), strict=True)


def _exact(part: Tensor) -> Tensor:
    return part.to(torch.promote_types(part.dtype, torch.float32))


def _u(x: Tensor) -> Tensor:
    return torch.addcmul(x.new_full((), A), x, x, value=C).mul_(x)


def install(model: nn.Module) -> None:
    """Let the perceptrons of a GPT-2 in `model` run by this module, in place."""
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
    from transformers.pytorch_utils import Conv1D

    class Perceptron(GPT2MLP):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> Tensor:
            if type(self.c_proj) is not Conv1D:
                return super().forward(hidden_states)  # type: ignore[no-any-return]
            flat = self.c_fc(hidden_states).flatten(0, -2)
            out = Product.apply(flat, self.c_proj.weight, self.c_proj.bias)  # type: ignore[no-untyped-call]
            return self.dropout(out.view(hidden_states.shape))  # type: ignore[no-any-return]

    for module in model.modules():
        if type(module) is GPT2MLP and getattr(module.act, "approximate", "") == "tanh":
            module.__class__ = Perceptron
