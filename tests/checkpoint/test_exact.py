"""A loaded checkpoint is the saved one, bit for bit; the run goes on as if never stopped."""

import json
import re
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
OFF = torch.amp.GradScaler(enabled=False)


def tiny(seed: int = 0, **changes: int) -> Any:
    torch.manual_seed(seed)
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 128, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**(sizes | changes)))
    model.register_buffer("seen", torch.tensor([seed]))
    return model


def build(model: torch.nn.Module, name: str = "adamw") -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return OPTIMIZERS[name]([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}])


def train(model: Any, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        ids = torch.randint(128, (2, 16))
        optimizer.param_groups[0]["lr"] = 1e-3 / (step + 1)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def save(folder: Path, model: Any, optimizer: torch.optim.Optimizer, **state: Any) -> Path:
    return checkpoint.save(
        folder, 3, model=model, optimizer=optimizer, scaler=OFF, state=dict(state)
    )


def load(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return checkpoint.load(path, model=model, optimizer=optimizer, scaler=OFF)


def bits(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, str, bytes]]:
    """Yield name, dtype and bytes of everything that a step reads and changes."""
    named = dict(model.state_dict())
    for number, state in optimizer.state_dict()["state"].items():
        named |= {f"{number}.{name}": tensor for name, tensor in state.items()}
    for name, tensor in sorted(named.items()):
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        yield name, str(tensor.dtype), flat.numpy().tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_continuing_is_the_same_as_never_stopping(name: str, tmp_path: Path) -> None:
    model = tiny()
    optimizer = build(model, name)
    train(model, optimizer, range(3))
    state = {"step": 3, "best": float("inf"), "loss": 1 / 3, "nested": {"list": [1, None]}}
    path = save(tmp_path, model, optimizer, **state)
    other = tiny(seed=1)
    restored = build(other, name)
    assert load(path, other, restored) == state == checkpoint.peek(path).state
    assert list(bits(other, restored)) == list(bits(model, optimizer))
    assert restored.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for file in path.iterdir():  # nothing may go on reading them
        with file.open("r+b") as opened:
            opened.write(bytes(file.stat().st_size))
    train(model, optimizer, range(3, 6))
    train(other, restored, range(3, 6))
    assert list(bits(other, restored)) == list(bits(model, optimizer))


def test_a_checkpoint_before_the_first_step_can_be_loaded(tmp_path: Path) -> None:
    model = tiny()
    path = save(tmp_path, model, build(model))
    other = tiny(seed=1)
    restored = build(other)
    load(path, other, restored)
    assert list(bits(other, restored)) == list(bits(model, build(model)))


def test_fp32_moments_of_bf16_weights_are_not_rounded(tmp_path: Path) -> None:
    model = tiny().to(torch.bfloat16)
    optimizer = build(model)
    train(model, optimizer, range(2))
    for state in optimizer.state.values():
        state["exp_avg"] = torch.rand_like(state["exp_avg"], dtype=torch.float32)
    path = save(tmp_path, model, optimizer)
    other = tiny(seed=1).to(torch.bfloat16)
    restored = build(other)
    load(path, other, restored)
    assert list(bits(other, restored)) == list(bits(model, optimizer))


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    model = tiny()
    path = save(tmp_path, model, build(model))
    assert "lm_head.weight" not in load_file(path / "model.safetensors")
    other = tiny(seed=1)
    load(path, other, build(other))
    assert other.lm_head.weight is other.transformer.wte.weight
    assert torch.equal(other.lm_head.weight, model.transformer.wte.weight)


def test_the_files_are_what_the_library_reads(tmp_path: Path) -> None:
    model = torch.nn.Module()
    expected = {
        "bool": torch.tensor([True, False, True]),
        "bf16": torch.rand(3, 5).to(torch.bfloat16),
        "empty": torch.empty(0, 4),
        "int64": torch.tensor(7),
        "turned": torch.rand(4, 3).T,
    }
    for name, tensor in expected.items():
        model.register_buffer(name, tensor)
    model.register_parameter("weight", torch.nn.Parameter(torch.rand(2)))
    optimizer = torch.optim.AdamW(model.parameters())
    found = load_file(save(tmp_path, model, optimizer) / "model.safetensors")
    assert found.keys() == expected.keys() | {"weight"}
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_the_loss_scale_of_float16_goes_on(tmp_path: Path) -> None:
    model = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    state = scaler.state_dict() | {"_growth_tracker": 17}
    scaler.load_state_dict(state)
    path = checkpoint.save(
        tmp_path, 1, model=model, optimizer=build(model), scaler=scaler, state={}
    )
    fresh = torch.amp.GradScaler("cpu")
    checkpoint.load(path, model=model, optimizer=build(model), scaler=fresh)
    assert fresh.state_dict() == state


def test_a_loss_scale_may_begin_with_the_continuation(tmp_path: Path) -> None:
    model = tiny()
    path = save(tmp_path, model, build(model))
    scaler = torch.amp.GradScaler("cpu")
    before = scaler.state_dict()
    checkpoint.load(path, model=model, optimizer=build(model), scaler=scaler)
    assert scaler.state_dict() == before


def test_how_the_optimizer_runs_is_not_restored(tmp_path: Path) -> None:
    model = tiny()
    optimizer = build(model, "adamw fused")
    train(model, optimizer, range(1))
    restored = build(model, "adamw")
    load(save(tmp_path, model, optimizer), model, restored)
    assert [group["fused"] for group in restored.param_groups] == [None, None]


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"n_embd": 16}, r"another model: \S+ is \[\d+.* in the checkpoint, \[\d+.* in the model"),
        ({"n_layer": 1}, r"another model: transformer.h.1.\S+ is only in the checkpoint.*more"),
        ({"n_layer": 3}, r"another model: transformer.h.2.\S+ is only in the model"),
        ({"tie_word_embeddings": False}, "another model: lm_head.weight is only in the model"),
    ],
)
def test_another_model_is_refused_before_it_is_touched(
    tmp_path: Path, change: dict[str, int], law: str
) -> None:
    model = tiny()
    path = save(tmp_path, model, build(model))
    other = tiny(seed=1, **change)
    before = list(bits(other, build(other)))
    with pytest.raises(RequestError, match=law):
        load(path, other, build(other))
    assert list(bits(other, build(other))) == before


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    model = tiny()
    path = save(tmp_path, model, build(model))
    with pytest.raises(RequestError, match="AdamW then, SGD now"):
        load(path, model, build(model, "sgd"))
    turned = torch.optim.AdamW(list(model.parameters())[::-1])
    with pytest.raises(
        RequestError, match=r"groups of \[\d+, \d+\].*the parameters or their order"
    ):
        load(path, model, turned)


def test_state_is_plain_json(tmp_path: Path) -> None:
    model = tiny()
    path = save(tmp_path, model, build(model), step=3)
    content = json.loads((path / "state.json").read_text())
    assert content.keys() == {"step", "state", "scaler", "optimizer", "environment"}
    assert checkpoint.peek(path).step == 3
    assert checkpoint.peek(path).environment == checkpoint.environment(model)
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_nothing_in_the_package_reads_pickles() -> None:
    unsafe = re.compile(
        r"torch\.load\b|torch\.save\b|\b(import|from) +(c?pickle|dill|joblib|shelve|marshal)\b"
        r"|\bpickle\.|allow_pickle=True|weights_only"
    )
    package = Path(checkpoint.__file__).parents[1]
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in package.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if unsafe.search(line)
    ]
    assert found == []
