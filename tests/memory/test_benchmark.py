"""benchmarks/memory.py starts anywhere, and its work is real training."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from llmexp.memory.setting import gpt2_config, make

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "memory.py"
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 128}


def test_without_a_gpu_it_says_what_to_do_instead() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "CUDA device" in done.stdout and "python -m llmexp.plan" in done.stdout


def test_its_training_runs_on_the_cpu_too() -> None:
    spec = importlib.util.spec_from_file_location("memory_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    settings = {
        "optimizer": {"_target_": "torch.optim.AdamW", "fused": True},
        "data": {"pack": False, "max_length": 32},
    }
    setting = make(settings, gpt2_config(TINY, 0.1), precision="fp32", checkpointing=True)
    case = {"setting": asdict(setting), "rows": 2, "passes": 2, "steps": 2, "cap": 0}
    assert benchmark.train(case, torch.device("cpu"))["rows"] == 2


@pytest.mark.gpu
@pytest.mark.slow
def test_the_plans_hold_on_this_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
