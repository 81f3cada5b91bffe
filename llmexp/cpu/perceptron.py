"""GPT-2's perceptron on a CPU: what its GELU gives is made again in backward, not kept.

It is the widest thing that a block keeps, a quarter of its activations, and one cheap pass.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Product(torch.autograd.Function):
    """gelu(wide) weight + bias; shapes [N, W], [W, D], [D]."""

    @staticmethod
    def forward(ctx: Any, wide: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(wide, weight, bias)
        return torch.addmm(bias, _gelu(wide), weight)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        wide, weight, bias = ctx.saved_tensors
        d_wide = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            d_wide = upstream @ weight.to(upstream.dtype).t()
            d_wide = torch.ops.aten.gelu_backward(d_wide, wide, approximate="tanh")
        if ctx.needs_input_grad[1]:
            d_weight = (_gelu(wide).t() @ upstream).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            d_bias = upstream.sum(0).to(bias.dtype)
        return d_wide, d_weight, d_bias


def _gelu(wide: Tensor) -> Tensor:
    return F.gelu(wide, approximate="tanh")


def install(model: nn.Module) -> None:
    """Let the perceptrons of a GPT-2 in `model` run by this module, in place."""
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
    from transformers.pytorch_utils import Conv1D

    class Perceptron(GPT2MLP):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> Tensor:
            if not torch.is_grad_enabled() or type(self.c_proj) is not Conv1D:
                return super().forward(hidden_states)  # type: ignore[no-any-return]
            flat = self.c_fc(hidden_states).flatten(0, -2)
            out = Product.apply(flat, self.c_proj.weight, self.c_proj.bias)  # type: ignore[no-untyped-call]
            return self.dropout(out.view(hidden_states.shape))  # type: ignore[no-any-return]

    for module in model.modules():
        if type(module) is GPT2MLP and getattr(module.act, "approximate", "") == "tanh":
            module.__class__ = Perceptron
