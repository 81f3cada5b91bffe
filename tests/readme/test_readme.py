"""The README is true: its commands run as written, its tree and its options are those on disk."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
LINES = [line for block in BLOCKS for line in block.strip().splitlines()]
COMMANDS = [line for line in LINES if line.startswith("python -m llmexp.")]
SETUP = [line for line in LINES if line not in COMMANDS]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a user's folder: my.txt, and the run that the recipes speak of."""
    folder = tmp_path_factory.mktemp("desk")
    lines = sorted((ROOT / "llmexp/data/sample").glob("*.txt"))[0].read_text().splitlines()[:200]
    (folder / "my.txt").write_text("\n".join(lines))
    first = next(line for line in COMMANDS if "run.name=first" in line)
    assert run(first, folder).returncode == 0
    return folder


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one line of the README in `folder`, with this Python and no account."""
    words = [sys.executable, *shlex.split(line)[1:]]
    environment = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_setup_is_what_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text().replace("--quiet ", "")
    environment, install, tests = SETUP
    assert environment in script
    assert install.startswith("pip install -e . && python -m llmexp.train")
    assert all(command in script for command in tests.split(" && "))


@pytest.mark.slow
@pytest.mark.parametrize("line", [c for c in COMMANDS if "run.name=first" not in c])
def test_a_command_runs_as_written(line: str, desk: Path) -> None:
    done = run(line, desk)
    wants_hub = "model=gpt2-" in line or "model=hf" in line or "model=gpt2 " in line
    if wants_hub and done.returncode == 2:  # no hub here: it says what to bring
        assert "model.weights=MY_FOLDER" in done.stderr
        return
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_first_command_is_a_command() -> None:
    assert any("python -m llmexp.train" in line for line in SETUP)


def test_every_option_that_is_named_exists() -> None:
    for group, options in re.findall(r"^\| `(\w+)=` \| ([^|]*) \|", README, re.M):
        on_disk = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        named = set(re.findall(r"`([\w.-]+)`", options)) - {"torch.optim", "conf"}
        assert named <= on_disk | {"torch.optim"}, group
        assert on_disk <= named or not on_disk or group in ("experiment", "sweep"), group


def test_every_file_that_is_named_exists() -> None:
    for name in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / name).exists(), name
    tree = re.search(r"```\nllmexp/\n(.*?)```", README, re.S)
    assert tree
    for name in re.findall(r"[\w/]+(?:\.py|/)(?=\s|,|:|$)", tree[1]):
        assert (ROOT / "llmexp" / name).exists(), name
