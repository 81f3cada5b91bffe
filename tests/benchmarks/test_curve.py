"""benchmarks/curve.py runs from end to end, and calls noise what is noise."""

import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
LINES = [
    f"the {who} {does} {what}"
    for who in ("cat", "dog", "bird")
    for does in ("sees", "likes")
    for what in ("a house by the sea", "one red apple", "it", "his old friend again")
]


@pytest.fixture(scope="module")
def told() -> ModuleType:
    """The module that writes the page."""
    spec = spec_from_file_location("curve_page", FOLDER / "curve_page.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["curve_page"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def test_the_smallest_run_writes_page_and_picture(tmp_path: Path) -> None:
    if find_spec("accelerate") is None:
        pytest.skip("Hugging Face's Trainer wants accelerate")
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.txt").write_text("\n".join(LINES))
    files = ["--train", tmp_path / "train.txt", "--validation", tmp_path / "held_out.txt"]
    small = ["--steps", "4", "--every", "2", "--rows", "2", "--length", "16", "--seeds", "0"]
    done = subprocess.run(
        [sys.executable, FOLDER / "curve.py", *files, *small, "--out", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "curve.md").read_text()
    gap = float(page.partition(" steps, ")[2].split()[0])
    assert gap < 1e-4  # without dropout both compute the same
    assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize(("shift", "expected"), [(0.0, "**Within"), (0.05, "**Not within")])
def test_what_is_called_noise(told: ModuleType, shift: float, expected: str) -> None:
    pairs = [
        told.Pair(seed, {0: 10.8, 9: 6.5 + loss + shift}, {0: 10.8, 9: 6.5 + other})
        for seed, (loss, other) in enumerate([(0.0, 0.02), (0.02, 0.0), (0.01, 0.01)])
    ]
    noise = told.Noise(pairs)
    assert noise.difference == pytest.approx(shift)
    assert noise.error == pytest.approx(0.01 * (2 / 3) ** 0.5)
    assert expected in noise.verdict()
    assert pairs[0].largest == pytest.approx(abs(shift - 0.02))
