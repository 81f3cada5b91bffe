"""The benchmarks start: at the smallest size, as a person would, and nothing is written beside."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = {
    "packing.py": ("--text", "lines.txt", "--rounds", "1", "--copies", "1", "--turns", "1"),
    "saving.py": ("--layers", "1", "--out", "."),
    "sweep.py": ("--trials", "4", "--jobs", "2", "--epochs", "0.05"),
    "torture.py": ("--kills", "1", "--peer-kills", "0", "--every", "500", "--out", "."),
}
SAYS = {
    "packing.py": r"packed \(llmexp\)",
    "saving.py": r"\| median \|",
    "sweep.py": r"pruned",
    # more than one run ends where some were over before their kill: the machine had been slower
    "torture.py": r"\| kill -9 at a random instant \| 1 \| [1-9] \| 0 \| 0 \|",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_starts(name: str, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("".join(f"line {n} of a text\n" for n in range(200)))
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *SMALLEST[name]],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS[name], done.stdout)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["launch.py"])
def test_what_measures_a_gpu_starts_or_says_that_there_is_none(name: str) -> None:
    smallest = ["--steps", "2", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *smallest], capture_output=True, text=True
    )
    has_gpu = "CUDA graphs, ms" in done.stdout
    assert done.returncode == (0 if has_gpu else 2), done.stderr
    assert has_gpu or "finds none here" in done.stdout
