"""benchmarks/scaling.py runs from end to end, and tells what grows from what does not."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def told() -> ModuleType:
    """The module that writes the page."""
    spec = spec_from_file_location("scaling_page", FOLDER / "scaling_page.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["scaling_page"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def test_the_smallest_run_writes_page_and_picture(tmp_path: Path) -> None:
    small = ["--tokens", "512", "--sizes", "gpt2-nano", "--steps", "60", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, FOLDER / "scaling.py", *small, "--out", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "scaling.md").read_text()
    assert page.count("| 512 |") == 1 and "| gpt2-nano |" in page and "MiB resident" in page
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("rise", "noise", "expected"),
    [(0.0, 0.0, "flat"), (2.0, 0.0, "**grows**"), (-2.0, 0.0, "flat"), (0.5, 30.0, "in the noise")],
)
def test_growth_is_told_from_noise(
    told: ModuleType, rise: float, noise: float, expected: str
) -> None:
    zigzag = np.array([0, 1, -1, 0, 1, -1, 0, 1, 1])
    values = 100 + rise * np.arange(9) + noise * zigzag
    assert told.verdict("memory", "MiB", values.tolist(), 0.01)[-1] == expected


def test_a_run_that_leaks_is_said_to_grow(told: ModuleType) -> None:
    def run(leak: float) -> list[Any]:
        moments = [told.Moment(n, n * 0.01, n * 0.02, 400 + leak * n, 8) for n in range(1, 10_000)]
        parts: list[Any] = told.parts_of(moments)
        return parts

    for leak, expected in ((0.001, "**grows**"), (0.0001, "flat")):
        _, trained, cpu, all_cpu, resident, files = zip(*run(leak), strict=True)
        assert trained == pytest.approx([10.0] * 10)
        assert cpu == pytest.approx([20.0] * 10) == all_cpu and set(files) == {8}
        assert told.verdict("memory", "MiB", resident[1:], told.LARGER)[-1] == expected


def test_a_validation_is_no_slow_step(told: ModuleType) -> None:
    moments = [told.Moment(n, n * 0.01, n * 0.02 + 2 * (n > 5030), 400, 8) for n in range(10_001)]
    parts = told.parts_of(moments)
    assert [part.cpu for part in parts] == pytest.approx([20.0] * 10)
    assert [part.all_cpu for part in parts][5] == pytest.approx(22.0)


def test_a_line_through_the_steps_finds_what_a_step_and_a_token_cost(told: ModuleType) -> None:
    def cost(tokens: int) -> object:
        return told.Cost([0.005 + 0.0001 * tokens] * 3, tokens, 1, 1.0, "cpu")

    fixed, each = told.straight({str(n): cost(n) for n in (64, 256, 4096)})
    assert (fixed, each) == (pytest.approx(5.0), pytest.approx(0.1))
