"""benchmarks/memory.py starts anywhere, and its work is real training."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from llmexp.memory import measure
from llmexp.memory.setting import gpt2_config, make

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "memory.py"
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 128}


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("memory_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_what_to_do_instead() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "CUDA device" in done.stdout and "python -m llmexp.plan" in done.stdout


@pytest.mark.parametrize("precision", ["fp32", "bf16_parameters"])
def test_its_training_runs_on_the_cpu_too(benchmark: Any, precision: str) -> None:
    settings = {
        "optimizer": {"_target_": "torch.optim.AdamW", "fused": True},
        "data": {"pack": False, "max_length": 32},
    }
    setting = make(settings, gpt2_config(TINY, 0.1), precision=precision, checkpointing=True)
    case = {"setting": asdict(setting), "rows": 2, "passes": 2, "steps": 2, "cap": 0}
    assert benchmark.train(case, torch.device("cpu"))["rows"] == 2


def test_its_plans_take_what_they_are_allowed(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not measure.shipped():
        pytest.skip(f"the numbers that ship do not hold for {measure.versions()}")
    monkeypatch.setattr(measure, "trace", lambda _: pytest.fail("a case is not among what ships"))
    for model, hw, batch_size, allow in benchmark.CASES:
        plan = benchmark.planned(model, hw, batch_size, allow=allow, precision="bf16")
        assert plan["reserved"] < plan["cap"]
        setting = plan["setting"]
        assert ("adamw8bit" in setting["optimizer"]["_target_"]) == ("adamw8bit" in allow)
        assert (setting["precision"] == "bf16_parameters") == ("bf16_parameters" in allow)


def test_what_it_leaves_out_is_said(benchmark: Any) -> None:
    assert benchmark.missing("", "fp16") is None
    assert "no bf16" in benchmark.missing("adamw8bit,bf16_parameters", "fp16")
    if importlib.util.find_spec("bitsandbytes") is None:
        assert "pip install" in benchmark.missing("adamw8bit", "bf16")


@pytest.mark.gpu
@pytest.mark.slow
def test_the_plans_hold_on_this_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
