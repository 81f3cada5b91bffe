"""GPT-2's perceptron gives what transformers' does, and keeps less of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmexp.cpu import perceptron
from llmexp.model import fuse_gelu


def test_its_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    shapes = ((5, 7), (7, 3), (3,))
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(perceptron.Product.apply, parts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gelu_is_pytorchs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(3 * perceptron.PIECE + 5) * 4, torch.tensor([0.0, 30, -30, 1e4])])
    x, upstream = x.to(dtype), torch.randn_like(x).to(dtype)
    wanted = torch.nn.functional.gelu(x, approximate="tanh")
    slope = torch.ops.aten.gelu_backward(upstream, x, approximate="tanh")
    torch.testing.assert_close(perceptron.gelu(x), wanted)
    grad = upstream.clone()
    found, again = perceptron.gelu_backward_(grad, x)
    torch.testing.assert_close(
        found, slope, rtol=1.6e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
    )
    assert found.data_ptr() == grad.data_ptr(), "in its place"
    assert torch.equal(again, perceptron.gelu(x))


@pytest.mark.parametrize("casts", [False, True], ids=["fp32", "bf16"])
def test_it_is_that_of_transformers(gpt2: Callable[..., Any], casts: bool) -> None:
    ids = torch.arange(40).view(2, 20)
    found = []
    for ours in (False, True):
        model = gpt2()
        fuse_gelu(model)
        if ours:
            perceptron.install(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=casts):
            loss = model(ids, labels=ids).loss
        loss.backward()
        found.append([loss.detach(), *(weight.grad for weight in model.parameters())])
    close = {"rtol": 2e-2, "atol": 2e-3} if casts else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found[1], found[0], **close)


def test_it_keeps_a_quarter_less(gpt2: Callable[..., Any]) -> None:
    def kept(ours: bool) -> int:
        model = gpt2()
        fuse_gelu(model)
        if ours:
            perceptron.install(model)
        mine = {weight.data_ptr() for weight in model.parameters()}
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in mine:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model.transformer(torch.zeros(4, 64, dtype=torch.int64)).last_hidden_state
            assert hidden.requires_grad
            return sum(seen.values())

    wide = 4 * 64 * 4 * 32 * 4  # bytes of what a GELU gives: rows, positions, 4 x width, float32
    assert kept(False) - kept(True) >= 2 * wide, "of two blocks"


def test_a_frozen_model_has_no_gradient(gpt2: Callable[..., Any]) -> None:
    model = gpt2()
    fuse_gelu(model)
    perceptron.install(model)
    frozen = model.transformer.h[0].mlp
    frozen.requires_grad_(False)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    model(ids, labels=ids).loss.backward()
    assert frozen.c_proj.weight.grad is None
    assert model.transformer.wte.weight.grad is not None
