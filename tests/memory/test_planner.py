"""Every preset's plan fits by replay, or is refused with plans that do; from numbers that ship."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.utils import get_args_parser

from llmexp import request
from llmexp.errors import RequestError
from llmexp.memory import budget as budgets
from llmexp.memory import measure, planner, ship
from llmexp.memory.budget import REPORTED
from llmexp.memory.nearest import FAMILY
from llmexp.plan import _plan, composed

pytestmark = pytest.mark.skipif(
    not measure.SHIPPED.is_file(),
    reason="the numbers of the shipped plans are not measured: python -m llmexp.memory.ship",
)

PAIRS = [(model, hw) for model in FAMILY for hw in REPORTED]


@pytest.fixture(autouse=True)
def only_what_ships(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let nothing come from this machine's cache, and refuse to trace."""
    if not measure.shipped():
        pytest.skip(f"the numbers that ship do not hold for {measure.versions()}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measure, "trace", pytest.fail)
    measure.seen.clear()
    yield
    measure.seen.clear()


def settings(*overrides: str) -> Any:
    return composed(list(overrides))


def refused(*overrides: str) -> str:
    with pytest.raises(RequestError) as caught:
        planner.plan(settings(*overrides), overrides=overrides)
    return str(caught.value)


def commands(refusal: str) -> list[list[str]]:
    lines = [line for line in refusal.splitlines() if "python -m" in line]
    return [shlex.split(line, comments=True)[3:] for line in lines]


@pytest.mark.parametrize(("model", "hw"), PAIRS)
def test_every_pair_fits_by_replay_or_is_refused_with_one_that_does(model: str, hw: str) -> None:
    try:
        plan = planner.plan(settings(f"model={model}", f"hw={hw}"))
    except RequestError as refusal:
        nearest = commands(str(refusal))
        assert nearest
        for overrides in nearest:
            assert fits(planner.plan(settings(*overrides)))
    else:
        assert fits(plan)
        assert (plan.accumulation - 1) * plan.micro_batch_size < 16
        assert plan.accumulation * plan.micro_batch_size >= 16


def fits(plan: planner.Plan) -> bool:
    assert plan.prediction is not None and plan.budget is not None
    prediction = plan.prediction
    assert prediction.live <= prediction.allocated <= prediction.min_cap <= prediction.reserved
    return prediction.reserved < prediction.total <= plan.budget.bytes


@pytest.mark.parametrize(("model", "hw", "batch_size"), ship.GUIDE)
def test_the_guides_four_rows_fit_with_their_batch(model: str, hw: str, batch_size: str) -> None:
    plan = planner.plan(settings(f"model={model}", f"hw={hw}", batch_size))
    assert fits(plan)
    examples = int(batch_size.partition("=")[2])
    assert plan.micro_batch_size == examples or plan.accumulation * plan.micro_batch_size > examples


@pytest.mark.parametrize("row", ship.ALLOWED, ids=" ".join)
def test_what_is_allowed_fits_where_nothing_else_does(row: tuple[str, str, str]) -> None:
    model, hw, allowed = row
    refused(f"model={model}", f"hw={hw}")
    plan = planner.plan(settings(f"model={model}", f"hw={hw}", allowed))
    assert fits(plan) and plan.taken
    assert all(name in "\n".join(plan.lines) for name in plan.taken)


@pytest.mark.parametrize("model", FAMILY)
def test_a_larger_card_never_gets_a_smaller_micro_batch_or_a_slower_rung(model: str) -> None:
    found: list[tuple[bool, int]] = []
    for hw in REPORTED:
        try:
            plan = planner.plan(settings(f"model={model}", f"hw={hw}"))
        except RequestError:
            assert not found, "what fits a card fits a larger one"
            continue
        found.append((not plan.activation_checkpointing, plan.micro_batch_size))
    for small, large in zip(found, found[1:], strict=False):
        assert large[0] >= small[0]
        if large[0] == small[0]:
            assert large[1] >= small[1]


def test_nothing_that_changes_the_numbers_is_chosen() -> None:
    wanted = settings("model=gpt2-medium", "hw=8gb")
    before = repr(wanted)
    planner.plan(wanted)
    assert repr(wanted) == before


def test_the_table_adds_up() -> None:
    plan = planner.plan(settings("model=gpt2-medium", "hw=12gb"))
    assert plan.prediction is not None and plan.budget is not None
    lines = plan.prediction.table(plan.budget)
    names = [line.split("  ")[1].strip() for line in lines]
    assert names[:3] == ["weights", "gradients", "optimizer states"]
    assert names[-5:] == ["workspaces", "fragmentation", "margin (4%)", "total", "CUDA context"]
    values = [float(line.split(" GiB")[0].split()[-1]) for line in lines]
    assert sum(values[:-2]) == pytest.approx(values[-2], abs=0.03)


def test_what_is_asked_for_and_does_not_fit_is_refused_not_changed() -> None:
    (model, hw, *insisted), (other, another, *also) = ship.BY_HAND
    refusal = refused(f"model={model}", f"hw={hw}", *insisted)
    assert "gpt2 does not fit 4.90 GiB" in refusal and "micro-batch 16 takes" in refusal
    assert any("train.micro_batch_size=auto" in command for command in commands(refusal))
    refusal = refused(f"model={other}", f"hw={another}", *also)
    assert any("train.activation_checkpointing=auto" in c for c in commands(refusal))


@pytest.mark.parametrize(
    "insisted", ["optimizer.betas=[0.8,0.9]", "model.name=mine", "hw.budget_gib=10.6"]
)
def test_the_commands_of_a_refusal_hold_whatever_was_asked_for(insisted: str) -> None:
    nearest = commands(refused("model=gpt2-large", "hw=12gb", insisted))
    assert len(nearest) >= 3
    for overrides in nearest:
        request.check(overrides, get_args_parser().parse_args(overrides))
        assert fits(planner.plan(settings(*overrides)))


def test_without_a_gpu_the_cpu_trains_with_the_plan_and_it_is_said() -> None:
    wanted = settings("model=gpt2-medium", "hw=12gb")
    alone, here = planner.plan(wanted), planner.plan(wanted, device=torch.device("cpu"))
    assert here.lines[:-1] == alone.lines
    assert "no CUDA device here: the CPU trains, with the plan of 12gb" in here.lines[-1]
    assert here.micro_batch_size == alone.micro_batch_size
    assert here.activation_checkpointing == alone.activation_checkpointing


def test_the_last_line_is_arithmetic_that_holds() -> None:
    for hw in ("12gb", "24gb", "80gb"):
        plan = planner.plan(settings("model=gpt2-medium", f"hw={hw}"))
        line = next(line for line in plan.lines if line.startswith("fits"))
        sum_of, total = line.split(": ")[1].split(" examples")[0].split(" = ")
        pieces = [piece.split(" x ") for piece in sum_of.split(" + ")]
        sizes = [math.prod(map(int, piece)) for piece in pieces]
        assert sum(sizes) == int(total) == 16
        assert sum(int(piece[0]) if piece[1:] else 1 for piece in pieces) == plan.accumulation


def test_one_format_is_named_and_what_else_the_card_may_take() -> None:
    (first, *_) = planner.plan(settings("model=gpt2-medium", "hw=12gb")).lines
    assert first.endswith(("bf16 (the card decides; fp16 takes no more)", "; bf16 takes no more)"))
    (first, *_) = planner.plan(settings("model=gpt2-medium", "hw=12gb", "precision=fp16")).lines
    assert first.endswith(", fp16")


@pytest.mark.parametrize("hw", ["12gb", "cpu"])
def test_rows_longer_than_the_model_has_positions_are_refused(hw: str) -> None:
    assert "data.max_length=513 is more than the 512 positions of gpt2-nano" in refused(
        f"hw={hw}", "data.max_length=513"
    )


@pytest.mark.parametrize("left", ["1e-12", "0.75", "0.3"])
def test_a_budget_of_nothing_is_refused(left: str) -> None:
    assert "GiB to train in" in refused("hw=6gb", f"hw.budget_gib={left}", "hw.display=true")


@pytest.mark.parametrize("line", [["-m", "train.batch_size=2,4"], ["--presets", "hw=6gb"]])
def test_a_plan_takes_no_flags_beside_its_own(
    line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["plan", *line])
    with pytest.raises(RequestError, match=f"{line[0]} does not hold here"):
        _plan()


def test_a_display_takes_its_share() -> None:
    plain = budgets.preset(settings("hw=8gb")["hw"])
    shown = budgets.preset(settings("hw=8gb", "hw.display=true")["hw"])
    assert plain is not None and shown is not None
    assert plain.gib - shown.gib == pytest.approx(budgets.DISPLAY)


@pytest.mark.parametrize("hw", REPORTED)
def test_a_budget_leaves_room_for_context_others_and_safety(hw: str) -> None:
    found = budgets.preset(settings(f"hw={hw}")["hw"])
    assert found is not None
    left = REPORTED[hw] - budgets.CONTEXT - budgets.OTHERS
    assert 0.96 * left < found.gib <= budgets.SHARE * left + 0.02


def test_planning_costs_milliseconds() -> None:
    wanted = [settings(f"model={model}", f"hw={hw}") for model, hw in PAIRS]
    for one in wanted:
        quietly(one)
    started = time.process_time()
    for one in wanted:
        quietly(one)
    assert (time.process_time() - started) / len(wanted) < 0.2  # a trace takes seconds


def test_the_readme_has_the_plans_of_today() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert "\n".join(ship.table()) in readme


def quietly(wanted: Any) -> None:
    with contextlib.suppress(RequestError):
        planner.plan(wanted)
