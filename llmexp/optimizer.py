"""Which weights decay, and the optimizer over them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay (matrices) and those that do not
    (biases, norms).

    A tied weight is one parameter and stands in one group. The order is that of `named_parameters`,
    so that a checkpoint finds every state again.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    decaying = [p for p in trainable if p.ndim >= 2]
    others = [p for p in trainable if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decaying}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return groups


def build(model: nn.Module, factory: Callable[..., torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Complete `factory` (an optimizer and its settings) with the model's parameter groups.

    Each group keeps its `peak_lr`: the schedule multiplies it, and it is saved with the optimizer.
    """
    optimizer = factory(parameter_groups(model))
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, multiplier: float) -> float:
    """Set every group to its peak times `multiplier`; return the first group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * multiplier
    return float(optimizer.param_groups[0]["lr"])


def step_if_finite(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, number: torch.Tensor
) -> None:
    """Update the weights unless `number` (loss plus gradient norm) is not finite; then nothing
    moves.

    A fused optimizer takes the verdict as a tensor on its device, so nothing waits for the GPU
    (the same way in which `GradScaler` tells it of an overflow). Others are asked to wait.
    """
    if scaler.is_enabled():  # float16: the scaler looks at the gradients itself
        scaler.step(optimizer)
    elif getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~torch.isfinite(number)).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif torch.isfinite(number):
        optimizer.step()
