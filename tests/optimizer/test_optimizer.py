from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from llmexp import optimizer


def test_matrices_decay_biases_and_norms_do_not(gpt2: Callable[..., Any]) -> None:
    model = gpt2()
    names = {id(p): name for name, p in model.named_parameters()}
    decaying, others = optimizer.parameter_groups(model)
    assert others["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decaying["params"])
    told = {names[id(p)] for p in others["params"]}
    assert all(name.endswith("bias") or ".ln_" in name for name in told)
    assert len(decaying["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_frozen_weights_are_left_out(gpt2: Callable[..., Any]) -> None:
    model = gpt2()
    model.transformer.wte.requires_grad_(False)
    kept = [p for group in optimizer.parameter_groups(model) for p in group["params"]]
    assert all(p is not model.transformer.wte.weight for p in kept)


def test_the_schedule_multiplies_the_peak(gpt2: Callable[..., Any]) -> None:
    adam = optimizer.build(gpt2(), partial(torch.optim.AdamW, lr=2e-3))
    assert optimizer.set_learning_rate(adam, 0.5) == pytest.approx(1e-3)
    assert optimizer.set_learning_rate(adam, 1.0) == pytest.approx(2e-3)


@pytest.mark.parametrize(
    "factory",
    [
        partial(torch.optim.AdamW, lr=0.1, fused=True),
        partial(torch.optim.SGD, lr=0.1, fused=True),
        partial(torch.optim.Adafactor, lr=0.1),
    ],
    ids=["adamw", "sgd", "adafactor"],
)
@pytest.mark.parametrize("norm", [1.0, float("nan"), float("inf")])
def test_weights_move_only_if_the_norm_is_finite(factory: Callable[..., Any], norm: float) -> None:
    layer = torch.nn.Linear(3, 3)
    adam = optimizer.build(layer, factory)
    before = layer.weight.clone()
    layer(torch.ones(1, 3)).sum().backward()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer.step_if_finite(adam, scaler, torch.tensor(norm))
    assert torch.equal(before, layer.weight) == (norm != 1.0)
