"""What is around a graph, without a GPU: gradients, random numbers, refusals, memory that ran out.

The recording itself is a stand-in (recording.py); test_graphs.py has the real one, marked gpu.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmexp import engine
from llmexp.errors import RunError
from llmexp.gpu import graphs
from llmexp.loss import probe_head
from llmexp.memory import oom
from llmexp.precision import Precision

sys.path.insert(0, str(Path(__file__).parent))
import recording as stand_in  # noqa: E402
from test_graphs import batches  # noqa: E402

PRECISION = Precision(name="fp32", tf32=False)


@pytest.fixture
def model(gpt2: Any) -> Any:
    made = gpt2(vocab_size=320)
    probe_head(made)
    made.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    return made


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch, model: Any) -> stand_in.Recording:
    return stand_in.install(monkeypatch, model)


class Plan:
    micro_batch_size, seed = 8, 1


def gradients(model: Any) -> list[torch.Tensor | None]:
    found = [None if weight.grad is None else weight.grad.clone() for weight in model.parameters()]
    model.zero_grad(set_to_none=True)
    return found


def test_steps_by_graphs_are_those_of_the_engine(
    recording: stand_in.Recording, model: Any, tmp_path: Path
) -> None:
    every, run = batches(tmp_path), graphs.Graphs(48)
    for step in range(6):
        for rows in (3, 8):
            torch.manual_seed(step)
            state = torch.get_rng_state()
            loss = run(model, every[step % 3], PRECISION, rows)
            assert torch.equal(state, torch.get_rng_state())
            found = gradients(model)
            torch.testing.assert_close(
                loss, engine.accumulate(model, every[step % 3], PRECISION, rows)
            )
            for ours, plain in zip(found, gradients(model), strict=True):
                assert (ours is None) == (plain is None), "no decay without a gradient"
                if ours is not None:
                    torch.testing.assert_close(ours, plain)
    assert 1 <= len(run._passes) < 6


def test_memory_that_ran_out_is_given_back_and_the_step_redone(
    recording: stand_in.Recording, model: Any, tmp_path: Path
) -> None:
    run, plan, events = graphs.Graphs(48), Plan(), []
    batch = batches(tmp_path)[0]
    run(model, batch, PRECISION, 8)
    recording.fails = [(recording.passes + 1, torch.OutOfMemoryError("CUDA out of memory"))]
    run._passes.clear()
    for attempt in oom.attempts(model, plan, 0, on_event=events.append):
        with attempt:
            loss = run(model, batch, PRECISION, plan.micro_batch_size)
    assert [event.micro_batch_size for event in events] == [4]
    found = gradients(model)
    torch.testing.assert_close(loss, engine.accumulate(model, batch, PRECISION, 4))
    for ours, plain in zip(found, gradients(model), strict=True):
        torch.testing.assert_close(ours, plain) if ours is not None else None


def test_memory_that_runs_out_elsewhere_takes_the_graphs(
    recording: stand_in.Recording, model: Any, tmp_path: Path
) -> None:
    run = graphs.Graphs(48)
    run(model, batches(tmp_path)[0], PRECISION, 8)
    assert run._passes and run._gradients
    for attempt in oom.attempts(model, Plan(), 0):
        with attempt:  # of a validation, say
            if run._passes:
                raise torch.OutOfMemoryError("CUDA out of memory")
    assert not run._passes and not run._gradients


def test_a_model_that_waits_goes_kernel_by_kernel(
    recording: stand_in.Recording, model: Any, tmp_path: Path
) -> None:
    recording.fails = [(2, RuntimeError("called a synchronizing CUDA operation"))]
    run, batch = graphs.Graphs(48), batches(tmp_path)[0]
    for _ in range(2):
        loss = run(model, batch, PRECISION, 8)
        found = gradients(model)
        torch.testing.assert_close(loss, engine.accumulate(model, batch, PRECISION, 8))
        torch.testing.assert_close(found[0], gradients(model)[0])
    assert not run._passes and not run._gradients


def test_layers_dropped_on_the_host_are_not_recorded(
    recording: stand_in.Recording, model: Any, tmp_path: Path
) -> None:
    model.config.layerdrop = 0.1
    run = graphs.Graphs(48)
    run(model, batches(tmp_path)[0], PRECISION, 8)
    assert recording.passes == 0 and not run._passes


def test_a_pass_that_cannot_be_recorded_ends_the_run_with_a_cure(
    recording: stand_in.Recording, model: Any, tmp_path: Path
) -> None:
    recording.fails = [(3, RuntimeError("operation not permitted when stream is capturing"))]
    with pytest.raises(RunError, match=r"stream is capturing\): use train.cuda_graphs=false"):
        graphs.Graphs(48)(model, batches(tmp_path)[0], PRECISION, 8)
