"""What is installed from a wheel finds its pages and its sample, wherever it is started."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import llmexp, omegaconf, pathlib
from llmexp.data import load
place = pathlib.Path(llmexp.__file__).parent
page = omegaconf.OmegaConf.to_container(omegaconf.OmegaConf.load(place / "conf/data/sample.yaml"))
page.pop("_target_")
print(sum(1 for _ in load(**page).texts()), place.parent.name)
"""


def run(
    *arguments: str, folder: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if path is None else {"PYTHONPATH": str(path)})}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_a_wheel_holds_what_the_commands_need(tmp_path: Path) -> None:
    command = ["-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(ROOT)]
    built = run(*command, folder=tmp_path)
    if built.returncode and "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("hatchling, which builds the wheel, cannot be fetched")
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("llmexp-*.whl"))) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(tmp_path / "installed")
    pages = {f"llmexp/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    texts = {str(path.relative_to(ROOT)) for path in (ROOT / "llmexp").rglob("sample/*.txt")}
    assert len(texts) >= 2
    assert not (pages | texts) - names
    assert not [name for name in names if "cache/" in name or name.startswith(("tests", "outputs"))]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    told = run("-c", LOAD, folder=elsewhere, path=tmp_path / "installed")
    count, place = told.stdout.split()
    assert (int(count) >= 1000, place) == (True, "installed"), told.stderr
    told = run("-m", "llmexp.train", "--cfg", "job", folder=elsewhere, path=tmp_path / "installed")
    assert "name: sample" in told.stdout, told.stderr
