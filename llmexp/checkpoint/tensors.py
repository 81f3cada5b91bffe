"""Model and optimizer as named tensors and JSON, and back, bit for bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llmexp.durable import Writer
from llmexp.errors import RequestError

# the names of https://github.com/huggingface/safetensors#format
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

# how an optimizer runs, not what it computes: a resumed run keeps its own
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> Writer:
    """Write a safetensors file and return its closed Writer (size and SHA-256); raises OSError.

    The library's own writer copies all tensors to the host first and opens the file by itself.
    This one needs the host memory of one tensor, hashes while it writes, and uses llmexp.durable.
    """
    # widest first keeps every tensor aligned to its item size, as the library does
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with Writer(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_bytes(tensors[name]))
    return file


def _bytes(tensor: torch.Tensor) -> memoryview:
    # a view as bytes needs at least one dimension
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def size(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return the bytes that the tensors hold."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def of_model(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name; tied ones (GPT-2's lm_head, wte) once."""
    tensors: dict[str, torch.Tensor] = {}
    seen = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() == 0 or place not in seen:
            tensors[name] = tensor
        seen.add(place)
    return tensors


def into_model(model: torch.nn.Module, path: Path) -> None:
    """Copy the tensors of a file into the model; raises RequestError before it changes anything."""
    live, saved = of_model(model), load_file(path)
    wrong = [f"{name} is only in the checkpoint" for name in saved.keys() - live.keys()]
    wrong += [f"{name} is only in the model" for name in live.keys() - saved.keys()]
    for name in live.keys() & saved.keys():
        before, now = saved[name], live[name]
        if (before.shape, before.dtype) != (now.shape, now.dtype):
            wrong.append(
                f"{name} is {list(before.shape)} {before.dtype} in the checkpoint, "
                f"{list(now.shape)} {now.dtype} in the model"
            )
    if wrong:
        raise RequestError(_told(f"{path} belongs to another model", wrong))
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(saved[name])


def of_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return its tensors as state.<parameter number>.<name>, and all the rest as JSON."""
    content = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for number, state in content["state"].items():
        values = state.values()
        if state.get("step") == 0 and all(torch.is_tensor(v) and not v.any() for v in values):
            continue  # made early (llmexp/cpu/moments.py)
        for name, value in state.items():
            key = f"state.{number}.{name}"
            if isinstance(value, torch.Tensor):
                tensors[key] = value
            else:
                scalars[key] = value
    return tensors, {
        "class": type(optimizer).__name__,
        "parameters": _parameter_names(optimizer, model),
        "param_groups": content["param_groups"],
        "state": scalars,
    }


def into_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, rest: dict[str, Any], path: Path
) -> None:
    """Restore what `of_optimizer` returned; raises RequestError before it changes anything."""
    groups = optimizer.state_dict()["param_groups"]
    _check_optimizer(optimizer, model, rest, path)
    for group, saved in zip(groups, rest["param_groups"], strict=True):
        for name, value in saved.items():
            if name not in IMPLEMENTATION:
                group[name] = tuple(value) if isinstance(group.get(name), tuple) else value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**load_file(path), **rest["state"]}.items():
        _, number, name = key.split(".", 2)
        if isinstance(value, torch.Tensor):
            # copies: the library's tensors lie on the mapped file, which is removed one day
            device = value.device if name == "step" else parameters[int(number)].device
            value = value.to(device, copy=True)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    _keep_dtypes(optimizer, parameters, state)


def _keep_dtypes(
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
    state: dict[int, dict[str, Any]],
) -> None:
    # load_state_dict casts state to its parameter's dtype: it rounds fp32 moments of bf16 weights
    for number, saved in state.items():
        for name, value in saved.items():
            now = optimizer.state[parameters[number]][name]
            if isinstance(value, torch.Tensor) and now.dtype != value.dtype:
                optimizer.state[parameters[number]][name] = value.to(now.device)


def _check_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, rest: dict[str, Any], path: Path
) -> None:
    wrong = []
    if rest["class"] != type(optimizer).__name__:
        wrong.append(f"{rest['class']} then, {type(optimizer).__name__} now")
    if rest["parameters"] != _parameter_names(optimizer, model):
        wrong.append("the parameters or their order changed")
    saved = [len(group["params"]) for group in rest["param_groups"]]
    current = [len(group["params"]) for group in optimizer.param_groups]
    if saved != current:
        wrong.append(f"groups of {saved} parameters then, {current} now")
    if wrong:
        raise RequestError(_told(f"{path} belongs to another optimizer", wrong))


def _parameter_names(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> list[str]:
    # the numbers in state.<number> follow the optimizer's order: a changed order must not go unseen
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        names.get(id(parameter), "")
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]


def _told(what: str, wrong: list[str]) -> str:
    more = [f"and {len(wrong) - 3} more"] if len(wrong) > 3 else []
    told = "; ".join(sorted(wrong)[:3] + more)
    return f"{what}: {told}. Resume with the config it was saved with."
