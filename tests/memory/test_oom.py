"""An out-of-memory error inside a step changes nothing but the micro-batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from llmexp.errors import RunError
from llmexp.memory import oom


@dataclass
class Plan:
    micro_batch_size: int = 16
    seed: int = 7
    advice: str = ""


def make_model(dropout: float) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 1)]
    return nn.Sequential(*layers).double()


def accumulate(model: nn.Module, rows: torch.Tensor, fail: Callable[[int], None]) -> None:
    loss = model(rows).square().sum() / 16
    fail(len(rows))
    loss.backward()


def parts(rows: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def train(
    plan: Plan, *, dropout: float = 0.0, steps: int = 4, fail_at: dict[int, int] | None = None
) -> tuple[nn.Module, list[oom.Event]]:
    """`fail_at[step]` rows per micro-batch are too many in that step."""
    model = make_model(dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(steps, 16, 8, dtype=torch.float64, generator=generator)
    events: list[oom.Event] = []
    for step in range(steps):
        limit = (fail_at or {}).get(step, 10**9)

        def fail(rows: int, limit: int = limit) -> None:
            if rows >= limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        for attempt in oom.attempts(model, plan, step, on_event=events.append):
            with attempt:
                for rows in parts(data[step], plan.micro_batch_size):
                    accumulate(model, rows, fail)
        optimizer.step()
        optimizer.zero_grad()
    return model, events


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("micro_batch_size", [16, 8, 6, 1])
def test_any_split_gives_the_same_weights(micro_batch_size: int) -> None:
    whole, _ = train(Plan(16))
    split, _ = train(Plan(micro_batch_size))
    torch.testing.assert_close(flat(split), flat(whole), rtol=0, atol=1e-10)


def test_a_survived_error_gives_the_same_weights_without_dropout() -> None:
    whole, _ = train(Plan(16))
    plan = Plan(16)
    survived, events = train(plan, fail_at={2: 4})
    torch.testing.assert_close(flat(survived), flat(whole), rtol=0, atol=1e-10)
    halved = [(e.step, e.failed, e.micro_batch_size) for e in events]
    assert halved == [(2, 16, 8), (2, 8, 4), (2, 4, 2)]
    assert plan.micro_batch_size == 2, "the found size is kept"


def test_with_dropout_a_survived_error_equals_a_start_at_the_smaller_size_bit_for_bit() -> None:
    survived, _ = train(Plan(16), dropout=0.5, fail_at={0: 16})
    smaller, _ = train(Plan(8), dropout=0.5)
    assert torch.equal(flat(survived), flat(smaller))
    other, _ = train(Plan(16), dropout=0.5)
    assert not torch.equal(flat(survived), flat(other)), "dropout was on"


def test_an_error_in_a_later_micro_batch_leaves_no_half_summed_gradient() -> None:
    plan, calls = Plan(8), []
    model = make_model(0.0)
    rows = torch.ones(16, 8, dtype=torch.float64)

    def fail(count: int) -> None:
        calls.append(count)
        if len(calls) == 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")

    for attempt in oom.attempts(model, plan, 0):
        with attempt:
            for part in parts(rows, plan.micro_batch_size):
                accumulate(model, part, fail)
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    accumulate(model, rows, lambda count: None)
    for survived, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(survived, parameter.grad, rtol=0, atol=1e-12)
    assert calls == [8, 8, 4, 4, 4, 4]


def test_halving_starts_below_the_rows_the_step_has() -> None:
    plan = Plan(64)
    sizes = []
    for attempt in oom.attempts(make_model(0.0), plan, 0, rows=6):
        with attempt:
            sizes.append(plan.micro_batch_size)
            if plan.micro_batch_size > 1:
                raise torch.OutOfMemoryError
    assert sizes == [64, 3, 1]


def test_micro_batch_one_ends_the_run_with_the_advice_of_the_plan() -> None:
    with pytest.raises(RunError, match=r"(?s)micro-batch 1.*checkpoint is intact.*hw=24gb"):
        train(Plan(2, advice="try hw=24gb"), fail_at={1: 1})


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(RuntimeError, match="shapes do not match"):
        for attempt in oom.attempts(make_model(0.0), Plan(), 0):
            with attempt:
                raise RuntimeError("shapes do not match")


def test_nothing_of_the_failed_try_is_alive_when_the_next_one_starts() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    plan = Plan(4)

    def forward(model: nn.Module) -> None:
        hidden = model[0](torch.ones(4, 8, dtype=torch.float64))  # type: ignore[index]
        alive.append(weakref.ref(hidden))
        raise torch.OutOfMemoryError("no memory")

    model = make_model(0.0)
    for attempt in oom.attempts(model, plan, 0):
        assert all(ref() is None for ref in alive)
        with attempt:
            if not alive:
                forward(model)
    assert len(alive) == 1


def test_the_seed_of_a_step_is_a_function_of_seed_and_step() -> None:
    seeds = {oom.step_seed(seed, step) for seed in range(20) for step in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= s < 2**63 for s in seeds)
    assert oom.step_seed(42, 3) == oom.step_seed(42, 3)


def test_all_ranks_retry_when_one_runs_out_of_memory() -> None:
    script = Path(__file__).with_name("two_ranks.py")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    path = {"PYTHONPATH": str(script.parent.parent.parent)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, **shared, **path, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert json.loads(printed[0].splitlines()[-1]) == [[8, 4, 2], [8, 4, 2]]
