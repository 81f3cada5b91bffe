"""Save one checkpoint so that a kill at any instant leaves it whole or absent, and load one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmexp import durable
from llmexp.checkpoint.resume import environment
from llmexp.checkpoint.shelf import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    SaveError,
    defect,
    manifest,
    path_of,
)
from llmexp.errors import RequestError

if TYPE_CHECKING:
    import torch

GIB = 1 << 30


@dataclass(frozen=True)
class Saved:
    """What a checkpoint says without its tensors."""

    step: int
    state: dict[str, Any]
    environment: dict[str, Any]


def save(
    folder: Path,
    step: int,
    *,
    model: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
    scaler: "torch.amp.GradScaler",
    state: dict[str, Any],
) -> Path:
    """Write <folder>/step-<step> and return it; a valid one that is there already is kept.

    Raises SaveError when the disk refuses: the older checkpoints are whole, the new one is gone.
    """
    from llmexp.checkpoint import tensors

    final = path_of(folder, step)
    weights = tensors.of_model(model)
    moments, rest = tensors.of_optimizer(optimizer, model)
    described = {
        "step": step,
        "state": state,
        "scaler": scaler.state_dict(),
        "optimizer": rest,
        "environment": environment(model),
    }
    unfinished = durable.temporary(final)
    try:
        durable.make_folder(folder)
        if final.exists():
            if defect(final) is None:
                return final
            durable.remove_directory(final)
        _check_space(folder, tensors.size(weights) + tensors.size(moments))
        durable.discard(unfinished)
        durable.make_folder(unfinished)
        written = {
            MODEL: tensors.write(unfinished / MODEL, weights),
            OPTIMIZER: tensors.write(unfinished / OPTIMIZER, moments),
            STATE: _write(unfinished / STATE, durable.encode(described, indent=1)),
        }
        files = {name: {"size": file.size, "sha256": file.sha256} for name, file in written.items()}
        _write(unfinished / MANIFEST, manifest(files))
        durable.publish_directory(unfinished, final)
    except OSError as error:
        durable.discard(unfinished)
        raise SaveError(f"checkpoint {final} was not saved: {error.strerror}") from error
    return final


def load(
    path: Path,
    *,
    model: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
    scaler: "torch.amp.GradScaler",
) -> dict[str, Any]:
    """Restore all three bit for bit and return the caller's state; raises RequestError."""
    from llmexp.checkpoint import tensors

    if wrong := defect(path):
        raise RequestError(f"{path} cannot be used: {wrong}")
    described = json.loads((path / STATE).read_bytes())
    tensors.into_model(model, path / MODEL)
    tensors.into_optimizer(optimizer, model, described["optimizer"], path / OPTIMIZER)
    if described["scaler"]:  # a run that had no loss scale yet begins with a fresh one
        scaler.load_state_dict(described["scaler"])
    state: dict[str, Any] = described["state"]
    return state


def load_model(path: Path, model: "torch.nn.Module") -> None:
    """Restore the weights alone; raises RequestError."""
    from llmexp.checkpoint import tensors

    if wrong := defect(path):
        raise RequestError(f"{path} cannot be used: {wrong}")
    tensors.into_model(model, path / MODEL)


def peek(path: Path) -> Saved:
    """Read step, state and environment of a checkpoint that `find` or `newest` returned."""
    described = json.loads((path / STATE).read_bytes())
    return Saved(described["step"], described["state"], described["environment"])


def _write(path: Path, data: bytes) -> durable.Writer:
    with durable.Writer(path) as file:
        file.write(data)
    return file


def _check_space(folder: Path, expected: int) -> None:
    needed, free = int(1.2 * expected), durable.free_bytes(folder)
    if free < needed:
        raise SaveError(
            f"a checkpoint in {folder} needs {needed / GIB:.2f} GiB, "
            f"{free / GIB:.2f} GiB are free. Make room, or lower checkpoint.keep."
        )
