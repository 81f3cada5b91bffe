"""How a run ends decides what its study is told; outside a sweep there is no study, and no cost."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmexp.errors import LockedError, RequestError, RunError
from llmexp.health import COLLAPSED, NOT_FINITE
from llmexp.sweep.trial import NullTrial, current, pack, run_trial, unpack, verdict


class OutOfMemoryError(RuntimeError):
    """By its name, as torch has it: the job side does not import torch."""


def raised(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (OutOfMemoryError("CUDA"), "infeasible"),
        (MemoryError(), "infeasible"),
        (RuntimeError("CUDA error: out of memory"), "infeasible"),
        (raised(RunError("step 3"), OutOfMemoryError()), "infeasible"),
        (RunError("Out of memory in step 0 at micro-batch 1"), "infeasible"),
        (RunError(f"step 3: {COLLAPSED}"), "infeasible"),
        (RunError(f"step 3: {NOT_FINITE}"), "infeasible"),
        (RuntimeError("shape mismatch"), "failed"),
        (RequestError("no such file"), "refused"),
        (RequestError("gpt2-xl does not fit 4.90 GiB (hw=6gb): micro-batch 1 ..."), "infeasible"),
        (SystemExit(2), "refused"),
        (SystemExit(3), "failed"),
        (SystemExit(143), "stopped"),
        (SystemExit(130), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (LockedError("busy"), "stopped"),
    ],
)
def test_what_was_raised_names_the_end(error: BaseException, state: str) -> None:
    assert verdict(error) == state


@pytest.mark.parametrize(
    ("loss", "state"),
    [
        (1.5, "finished"),
        (float("nan"), "infeasible"),
        (float("inf"), "infeasible"),
        (None, "infeasible"),
    ],
)
def test_a_loss_must_be_finite(loss: float | None, state: str) -> None:
    assert verdict(loss=loss) == state


def test_outside_a_sweep_nothing_is_pruned_and_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMEXP_TRIAL", raising=False)
    assert run_trial(lambda trial: 2.5 if not trial.report(0, 9.0) else 0.0) == 2.5
    assert isinstance(current(), NullTrial)

    def fail(trial: NullTrial) -> float:
        raise MemoryError

    with pytest.raises(MemoryError):
        run_trial(fail)


def test_other_ranks_of_a_trial_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMEXP_TRIAL", pack({"study": "s"}))
    monkeypatch.setenv("RANK", "1")
    assert run_trial(lambda trial: 1.0 if trial.number is None else 0.0) == 1.0


def test_the_job_side_loads_neither_optuna_nor_hydra() -> None:
    look = "import sys, llmexp.sweep.trial; print({'optuna', 'hydra', 'torch'} & set(sys.modules))"
    seen = subprocess.run(
        [sys.executable, "-c", look],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert seen.stdout.strip() == "set()", seen.stderr


def test_a_spec_is_one_word() -> None:
    spec = {"study": "a 'b' ${HOME} \"c\" {d}=e,ü", "number": 3, "lock": "/x y/z"}
    assert unpack(pack(spec)) == spec
    assert not set(pack(spec)) & set(" '\"${}=,()[]\\")
