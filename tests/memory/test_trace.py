"""The fake GPU behaves like a GPU, and the traced step is counted to the byte."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmexp.memory.prediction import MARGIN
from llmexp.memory.trace import autocast

HERE = Path(__file__).parent


def run(script: str, *arguments: str) -> Any:
    """Run a script of this folder in a process of its own: the fake GPU stays for good."""
    command = [sys.executable, "-W", "ignore", str(HERE / script), *arguments]
    root = str(HERE.parent.parent)
    env = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def facts() -> Any:
    return run("facts.py")


def test_autocast_casts_as_on_cuda(facts: Any) -> None:
    half, full = "torch.bfloat16", "torch.float32"
    assert facts["dtypes"] == {
        "linear": half,
        "gelu of half": half,
        "pow of half": full,
        "softmax of half": full,
        "sum of half": full,
        "layer norm of half": full,
        "half + float": full,
        "embedding": full,
    }


@pytest.mark.parametrize(
    ("macro", "names"),
    [
        ("AT_FORALL_LOWER_PRECISION_FP", autocast.LOWER_PRECISION),
        ("AT_FORALL_FP32", autocast.FLOAT32),
        ("AT_FORALL_FP32_SET_OPT_DTYPE", autocast.FLOAT32_BY_DTYPE),
        ("AT_FORALL_PROMOTE", autocast.PROMOTE),
    ],
)
def test_the_lists_of_operators_are_pytorchs(macro: str, names: tuple[str, ...]) -> None:
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    body = re.search(rf"#define {macro}\(_\)((?:.*\\\n)*.*)", header.read_text())
    assert body is not None
    calls = re.findall(r"_\(([\w, ]+)\)", body.group(1))
    theirs = {".".join(part.strip() for part in call.split(",")) for call in calls}
    assert set(names) <= theirs
    text = re.compile("conv|upsample|_cell|_loss|frobenius|nuclear|pdist|einsum|flash|str_ord")
    assert all(text.search(name) for name in theirs - set(names)), "a language model has none"


def test_a_weight_is_cast_once_per_autocast(facts: Any) -> None:
    assert facts["casts"] == [2, 2, 0]


def test_attention_takes_the_kernel_of_the_card(facts: Any) -> None:
    assert facts["kernels"] == {
        "half": "ScaledDotProductFlashAttentionBackward0",
        "half, masked": "ScaledDotProductEfficientAttentionBackward0",
        "float": "ScaledDotProductEfficientAttentionBackward0",
    }
    rows, width = 256, 64  # 130 rounded to 128s, 40 to 32s
    assert facts["flash_backward"] == [4 * 2 * 3 * rows * width, 4 * 2 * 3 * rows]


def test_values_that_nobody_has_are_taken_for_the_worst(facts: Any) -> None:
    reads = facts["reads"]
    assert reads["rows under a mask"] == [4, 6]
    assert reads["masked_select"] == [24]
    assert reads["finite"] is True
    assert reads["item"] == 0.0, "no overflow"
    assert reads["tolist"] == [0.0, 0.0]


def test_live_bytes_equal_those_of_pytorchs_own_tracker(facts: Any) -> None:
    both = facts["both_trackers"]
    assert both["ours"] == pytest.approx(both["MemTracker"], rel=1e-3)


def test_a_trace_is_the_same_every_time_and_nothing_is_released_twice(facts: Any) -> None:
    steps = facts["steps"]
    assert steps["again"] == steps["plain"]
    assert all(numbers["released twice"] == 0 for numbers in steps.values())


def test_the_parts_add_up_and_none_is_missing(facts: Any) -> None:
    for numbers in facts["steps"].values():
        assert sum(numbers["parts"].values()) == numbers["peak"] <= numbers["allocated"]
    parts = facts["steps"]["plain"]["parts"]
    assert set(parts) == {
        *("weights", "gradients", "optimizer states", "autocast copies"),
        *("activations", "loss", "workspaces"),
    }
    assert parts["optimizer states"] == pytest.approx(2 * parts["weights"], rel=0.05)
    assert parts["gradients"] == pytest.approx(parts["weights"], rel=0.05)


def test_what_should_cost_memory_does(facts: Any) -> None:
    peak = {name: numbers["peak"] for name, numbers in facts["steps"].items()}
    assert peak["one pass"] < peak["plain"], "no gradients alive in the forward pass"
    assert peak["more rows"] > peak["plain"]
    assert peak["checkpointing"] < peak["plain"]
    kept = {name: facts["steps"][name]["parts"]["activations"] for name in ("fp32", "plain")}
    assert kept["fp32"] > kept["plain"]
    assert peak["packed"] > peak["plain"], "the mask"
    assert peak["fp16"] == pytest.approx(peak["plain"], rel=0.01)


@pytest.mark.slow
def test_rows_of_many_lengths_stay_within_the_margin_of_the_plan() -> None:
    found = run("lengths.py")
    assert found["varied"] <= found["planned"] * (1 + MARGIN)
    planned, varied = found["allocated"]
    assert varied <= planned * 1.01
