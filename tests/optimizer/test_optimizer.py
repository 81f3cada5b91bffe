import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmexp import checkpoint, optimizer
from llmexp.errors import RequestError


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_move_only_if_the_norm_is_finite(
    factory: Callable[..., Any], norm: float, dtype: torch.dtype
) -> None:
    layer = torch.nn.Linear(3, 3).to(dtype)
    adam = optimizer.build(layer, factory)
    before = layer.weight.clone()
    layer(torch.ones(1, 3, dtype=dtype)).sum().backward()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer.step_if_finite(adam, scaler, torch.tensor(norm))
    assert torch.equal(before, layer.weight) == (norm != 1.0)


SCALER = torch.amp.GradScaler("cpu", enabled=False)
ULP = 2**-7  # of bf16 between 1 and 2


def test_rounding_by_chance_keeps_the_mean_and_takes_the_two_neighbours() -> None:
    torch.manual_seed(0)
    for sign in (1.0, -1.0):
        exact = torch.full((100_000,), sign * (1 + ULP / 8))
        found = optimizer.rounded(exact)
        assert torch.equal(found, found.bfloat16().float())
        assert sorted({abs(x) for x in found.unique().tolist()}) == [1.0, 1 + ULP]
        assert (found.mean() - exact[0]).abs() < 5 * ULP * (7 / 64 / 100_000) ** 0.5


def test_what_bf16_can_hold_is_not_rounded() -> None:
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)  # a GPU's
    some = torch.tensor([0.0, -0.0, 1.5, -3.0, 2.0**-130, torch.inf, -torch.inf])
    for _ in range(20):
        assert torch.equal(optimizer.rounded(some), some)
        assert optimizer.rounded(nan).isnan()


def moved(weight: torch.Tensor, factory: Callable[..., Any], *, seed: int = 0) -> torch.Tensor:
    """Return bf16 weights after 100 steps along the same gradient."""
    layer = torch.nn.ParameterList([torch.nn.Parameter(weight.bfloat16())])
    built = optimizer.build(layer, factory, seed=seed)
    for _ in range(100):
        layer[0].grad = torch.ones_like(layer[0])
        optimizer.step_if_finite(built, SCALER, torch.tensor(0.0))
    assert layer[0].dtype == torch.bfloat16
    assert built.param_groups[0]["rounding"] == [seed, 100], "other noise in every step"
    return layer[0].detach().float()


ADAMW = partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0, fused=True)


def test_updates_too_small_for_bf16_are_not_lost() -> None:
    found = moved(torch.ones(50_000), ADAMW)
    assert found.mean().item() == pytest.approx(1 - 100 * 1e-4, abs=2e-4)
    rounded_to_nearest = torch.ones(1).bfloat16() - torch.tensor(1e-4).bfloat16()
    assert rounded_to_nearest == 1, "what is told here would not happen otherwise"


def test_the_noise_is_that_of_the_seed() -> None:
    weight = torch.ones(1000)
    first = moved(weight, ADAMW)
    torch.manual_seed(7)
    assert torch.equal(first, moved(weight, ADAMW))
    assert not torch.equal(first, moved(weight, ADAMW, seed=1))


def test_moments_of_bf16_weights_stay_in_fp32() -> None:
    layer = torch.nn.Linear(3, 3).bfloat16()
    adam = optimizer.build(layer, ADAMW)
    layer(torch.ones(1, 3).bfloat16()).sum().backward()
    optimizer.step_if_finite(adam, SCALER, torch.tensor(0.0))
    assert set(adam.state) == set(layer.parameters())
    assert {t.dtype for state in adam.state.values() for t in state.values()} == {torch.float32}


def eight_bit() -> Callable[..., Any]:
    pytest.importorskip("bitsandbytes", reason="pip install 'llmexp[8bit]'")
    return partial(optimizer.adamw8bit, lr=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
def test_a_checkpoint_keeps_every_bit_of_it(
    gpt2: Callable[..., Any], tmp_path: Path, dtype: torch.dtype, kind: str
) -> None:
    factory = eight_bit() if kind == "adamw8bit" else partial(ADAMW, lr=1e-3)

    def new() -> tuple[Any, torch.optim.Optimizer]:
        model = gpt2(n_embd=64).to(dtype)
        return model, optimizer.build(model, factory, seed=3)

    def train(model: Any, built: torch.optim.Optimizer) -> None:
        for number in range(3):
            torch.manual_seed(number)
            ids = torch.randint(0, 96, (2, 16))
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step_if_finite(built, SCALER, torch.tensor(0.0))
            built.zero_grad()

    one, first = new()
    train(one, first)
    path = checkpoint.save(tmp_path, 3, model=one, optimizer=first, scaler=SCALER, state={})
    other, second = new()
    checkpoint.load(path, model=other, optimizer=second, scaler=SCALER)
    assert first.param_groups[0].get("rounding") == second.param_groups[0].get("rounding")
    assert "qmap" not in (path / "optimizer.safetensors").read_text(errors="ignore"), "constants"
    train(one, first)
    train(other, second)
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)
        for name, value in first.state[left].items():
            same = second.state[right][name]
            assert torch.equal(value, same) if torch.is_tensor(value) else value == same


def test_eight_bits_follow_adamw() -> None:
    torch.manual_seed(0)
    start = torch.randn(64, 128)
    exact = moved(start, partial(ADAMW, lr=1e-2))
    eight = moved(start, partial(eight_bit(), lr=1e-2, weight_decay=0.0))
    way = (exact - start).mean()
    assert way < -0.5
    assert (eight - start).mean() == pytest.approx(way.item(), rel=0.02)


def test_a_missing_library_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RequestError, match=r"pip install 'llmexp\[8bit\]', or use optimizer=adamw"):
        optimizer.refuse_missing(partial(optimizer.adamw8bit, lr=1e-3))
    optimizer.refuse_missing(ADAMW)


def test_a_device_without_its_kernels_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class AdamW8bit(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:
            raise NotImplementedError("no kernel\nfor this")

    library = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=AdamW8bit))
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    with pytest.raises(RequestError, match=r"does not work on this cpu \(no kernel\)"):
        optimizer.build(torch.nn.Linear(3, 3), partial(optimizer.adamw8bit, lr=1e-3))
