"""What may differ between a run and its continuation, told in words."""

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# what a run shows, keeps and stops at; never what a step learns
SAFE = (
    "checkpoint",
    "logger",
    "resume",
    "run",
    "samples",
    "sweep",
    "train.log_every",
    "train.on_nonfinite",
    "train.on_spike",
    "train.patience",
    "train.validate_every",
    "train.validate_first",
)

# how a run fits: the same sums, which another cut rounds differently
FIT = (
    "hw",
    "train.activation_checkpointing",
    "train.cuda_graphs",
    "train.micro_batch_size",
)

# more of them is safe for the steps behind us. The steps ahead follow the longer schedule: the
# learning rate is a function of progress = step / total steps, so it rises at the seam, and the end
# differs from that of a run planned so long from the start.
GROWING = ("train.epochs", "train.max_steps")

_version = cache(version)  # it reads a file each time


def environment(model: "torch.nn.Module") -> dict[str, Any]:
    """Describe what the bits of a training step depend on besides code, config and data."""
    import torch

    parameter = next(model.parameters())
    cuda = parameter.device.type == "cuda"
    return {
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(parameter.device)
        if cuda
        else f"cpu {torch.backends.cpu.get_cpu_capability()}",
        # the threads of the host do not change what a GPU adds up
        "threads": None if cuda else torch.get_num_threads(),
        "dtype": str(parameter.dtype).removeprefix("torch."),
    }


def environment_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Tell what differs between two environments; an empty list promises a bitwise resume."""
    return [
        f"{name} {saved.get(name)} then, {current.get(name)} now: "
        "the resume is correct, not bitwise"
        for name in sorted(saved.keys() | current.keys())
        if saved.get(name) != current.get(name)
    ]


def config_differences(
    saved: Mapping[str, Any], current: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Tell which changed settings a continued run may have, and which not, with both values."""
    before, now = _flat(saved), _flat(current)
    allowed: list[str] = []
    refused: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        told = f"{key}: {old} then, {new} now"
        if _is_below(key, SAFE):
            allowed.append(told)
        elif _is_below(key, FIT):
            allowed.append(
                f"{told} (the same gradient, rounded differently; where there is dropout, it draws "
                "other numbers)"
            )
        elif key in GROWING and _limit(new) > _limit(old):
            allowed.append(f"{told} (the learning rate ahead follows the longer run)")
        else:
            refused.append(told)
    return allowed, refused


def _is_below(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _limit(value: float | None) -> float:
    return float("inf") if value is None else value


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
