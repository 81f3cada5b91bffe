"""Which weights decay, the optimizer over them, and its step: in fp32 also of weights in bf16."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmexp.errors import RequestError
from llmexp.memory.oom import step_seed


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


def build(
    model: nn.Module, factory: Callable[..., torch.optim.Optimizer], *, seed: int = 0
) -> torch.optim.Optimizer:
    """Complete `factory` (an optimizer and its settings) with the model's parameter groups.

    Each group keeps its `peak_lr`: the schedule multiplies it, and it is saved with the optimizer.
    So is `rounding`, (seed, steps done), where weights are bf16.
    """
    optimizer = factory(parameter_groups(model))
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    if any(weight.dtype == torch.bfloat16 for weight in model.parameters()):
        optimizer.param_groups[0]["rounding"] = [seed, 0]
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
        step(optimizer)
    elif torch.isfinite(number):
        step(optimizer)


def step(optimizer: torch.optim.Optimizer) -> None:
    """Update the weights; those in bf16 one after the other in fp32, rounded stochastically.

    Rounded to the nearest, most updates would be lost: bf16 has 8 bits, so whatever is less than
    2^-9 of its weight. Moments stay in the optimizer's own format: with beta2=0.999 one in bf16
    would never fall. The noise depends on the seed and the number of steps alone.
    """
    groups = optimizer.param_groups
    if "rounding" not in groups[0]:
        optimizer.step()
        return
    seed, done = groups[0]["rounding"]
    torch.manual_seed(step_seed(seed, -1 - done))  # other numbers than those of dropout
    for group in groups:
        for weight in group["params"]:
            if weight.grad is not None:
                optimizer.param_groups = [group]
                _update(optimizer, weight)
    optimizer.param_groups = groups
    groups[0]["rounding"] = [seed, done + 1]


@torch.no_grad()
def _update(optimizer: torch.optim.Optimizer, weight: Tensor) -> None:
    """Let the optimizer update one weight of its only group in fp32."""
    (group,) = optimizer.param_groups
    exact = weight.float()
    assert weight.grad is not None
    exact.grad = weight.grad.float()
    optimizer.state[exact] = optimizer.state.pop(weight, {})
    optimizer.param_groups = [{**group, "params": [exact]}]
    optimizer.step()
    optimizer.state[weight] = optimizer.state.pop(exact)
    exact.grad = None
    weight.copy_(rounded(exact))


def rounded(exact: Tensor) -> Tensor:
    """Round float32 to what bf16 can hold: up or down by chance, so that the mean stays.

    Both have the same exponent; noise below the last bit of bf16 carries as often as it should.
    """
    noise = torch.empty_like(exact, dtype=torch.int32).random_(1 << 16)
    noise.masked_fill_(exact.isnan(), 0)  # a carry could make a number of it
    return noise.add_(exact.view(torch.int32)).bitwise_and_(-(1 << 16)).view(torch.float32)


def adamw8bit(
    params: Sequence[dict[str, Any]],
    lr: float = 5e-5,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """Return bitsandbytes' AdamW with moments of 8 bits, whose state is plain tensors.

    Dettmers et al. 2022, https://arxiv.org/abs/2110.02861. Raises RequestError where it is not
    installed or has nothing for this device.
    """
    theirs = bitsandbytes().optim.AdamW8bit
    maps = {"qmap1": "dynamic", "qmap2": "udynamic"}  # constants: what the 8 bits stand for

    class AdamW8bit(theirs):  # type: ignore[misc, valid-type]
        def state_dict(self) -> dict[str, Any]:
            content = torch.optim.Optimizer.state_dict(self)
            states = content["state"].items()
            content["state"] = {
                number: {name: value for name, value in state.items() if name not in maps}
                for number, state in states
            }
            return content

        def load_state_dict(self, content: dict[str, Any]) -> None:
            super().load_state_dict(content)
            for weight, state in self.state.items():
                for name, kind in maps.items() if "absmax1" in state else ():
                    self.name2qmap[kind] = state[name] = self.name2qmap[kind].to(weight.device)

    settings = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
    device = params[0]["params"][0].device
    tried = torch.zeros(4096, device=device, requires_grad=True)
    tried.grad = torch.zeros_like(tried)
    try:
        theirs([tried], **settings).step()
    except Exception as problem:  # of its loader, or of the kernel it does not have
        reason = str(problem).strip().partition("\n")[0]
        raise RequestError(
            f"optimizer=adamw8bit: bitsandbytes does not work on this {device.type} ({reason}): "
            "use optimizer=adamw"
        ) from None
    return AdamW8bit(params, **settings)


def refuse_missing(factory: Callable[..., torch.optim.Optimizer]) -> None:
    """Raise RequestError where an optimizer needs a library that is not installed."""
    if getattr(factory, "func", factory) is adamw8bit:
        bitsandbytes()


def bitsandbytes() -> Any:
    """Return the library of the 8-bit optimizer. Raises RequestError where it is not installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels not used here
    try:
        import bitsandbytes as library
    except ImportError:
        raise RequestError(
            "optimizer=adamw8bit needs bitsandbytes, which is not installed: "
            "pip install 'llmexp[8bit]', or use optimizer=adamw"
        ) from None
    return library
