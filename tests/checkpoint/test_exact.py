"""A loaded checkpoint is the saved one, bit for bit, for every optimizer that ships."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from llmexp import checkpoint
from llmexp.errors import RequestError

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw fused": lambda groups: torch.optim.AdamW(groups, fused=True),
    "adamw amsgrad": lambda groups: torch.optim.AdamW(groups, amsgrad=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "adafactor": torch.optim.Adafactor,
}


def tiny(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=128, n_positions=32)
    model = GPT2LMHeadModel(config).to(dtype)
    model.register_buffer("seen", torch.arange(3))
    return model


def build(name: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return OPTIMIZERS[name](groups)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        ids = torch.randint(128, (2, 16))
        optimizer.param_groups[0]["lr"] = 1e-3 / (step + 1)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def tensors_of(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            yield f"{number}.{name}", value


def assert_same(
    one: tuple[torch.nn.Module, torch.optim.Optimizer],
    other: tuple[torch.nn.Module, torch.optim.Optimizer],
) -> None:
    weights = other[0].state_dict()
    for name, tensor in one[0].state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    moments = dict(tensors_of(other[1]))
    for name, tensor in tensors_of(one[1]):
        assert tensor.dtype == moments[name].dtype, name
        assert torch.equal(tensor, moments[name]), name
    assert one[1].state_dict()["param_groups"] == other[1].state_dict()["param_groups"]


SCALER = torch.amp.GradScaler(enabled=False)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_continuing_is_the_same_as_never_stopping(name: str, tmp_path: Path) -> None:
    model = tiny()
    optimizer = build(name, model)
    train(model, optimizer, range(3))
    state = {"step": 3, "best": float("inf"), "loss": 1 / 3}
    path = checkpoint.save(
        tmp_path, 3, model=model, optimizer=optimizer, scaler=SCALER, state=state
    )
    fresh = tiny(seed=1)
    restored = build(name, fresh)
    found = checkpoint.load(path, model=fresh, optimizer=restored, scaler=SCALER)
    assert found == state == checkpoint.peek(path).state
    assert_same((model, optimizer), (fresh, restored))
    train(model, optimizer, range(3, 6))
    train(fresh, restored, range(3, 6))
    assert_same((model, optimizer), (fresh, restored))
