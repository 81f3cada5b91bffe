"""Without a GPU the plan is a rule of thumb that costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmexp.memory import cpu
from llmexp.plan import composed

ROOT = Path(__file__).parent.parent.parent


def settings(*overrides: str) -> Any:
    return composed(["hw=cpu", *overrides])


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        ([], 8),  # 4,096 tokens in rows of 512
        (["data.max_length=128"], 16),  # all of the batch
        (["train.micro_batch_size=3"], 3),
        (["train.batch_size=2", "train.micro_batch_size=5"], 2),
        (["model=gpt2", "data.max_length=1024"], 4),
    ],
)
def test_a_forward_pass_has_at_most_4096_tokens_unless_asked_for(
    overrides: list[str], rows: int
) -> None:
    assert cpu.micro_batch_size(settings(*overrides), free=10**12)[0] == rows


def test_with_less_memory_the_micro_batch_is_smaller_and_then_it_is_said() -> None:
    gpt2 = settings("model=gpt2")
    found = [cpu.micro_batch_size(gpt2, free=int(gib * 2**30)) for gib in (8, 4, 3, 1)]
    rows = [count for count, _ in found]
    assert rows[0] == 8 and rows == sorted(rows, reverse=True) and rows[-1] == 1
    assert "swap" in found[-1][1] and "swap" not in found[0][1]


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys, json; from llmexp.memory import planner;"
        "print(planner.plan(json.load(sys.stdin)).micro_batch_size);"
        "print([m for m in ('torch', 'transformers', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(settings()),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.split("\n")[:2] == ["8", "[]"], done.stderr
