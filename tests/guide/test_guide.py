"""The guide is true: its commands run, its lines of code are in the source, its options exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from llmexp import config, request

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guide.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.S)
    for line in block.strip().splitlines()
]
CODE = [
    line.strip()
    for block in re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    for line in block.strip().splitlines()
]
IDEAS = (
    *("Forward", "Loss", "Backward", "Accumulation", "Mixed precision", "Clipping", "Step"),
    *("Schedule", "Epoch", "Validation", "Overfitting", "Checkpoint"),
)


@pytest.mark.parametrize("line", CODE)
def test_a_quoted_line_is_in_the_engine(line: str) -> None:
    source = (ROOT / "llmexp" / "engine.py").read_text().splitlines()
    assert line in [known.strip() for known in source]


@pytest.mark.parametrize("idea", IDEAS)
def test_an_idea_has_an_everyday_picture_its_lines_and_its_option(idea: str) -> None:
    [told] = re.findall(rf"^\*\*{idea}\.\*\* (.*?)(?=^\*\*|^## )", GUIDE, re.M | re.S)
    assert "Like " in told
    assert "```python\n" in told
    assert re.search(r"`[a-z_]+(\.[a-z_]+|=)", told)


def test_the_guide_says_what_to_do_when_something_goes_wrong() -> None:
    for trouble in ("Out of memory", "NaN", "Slow", "Poor text"):
        [told] = re.findall(rf"^\*\*{trouble}.*?\*\* (.*?)(?=^\*\*|^## |^If )", GUIDE, re.M | re.S)
        assert "```bash\n" in told, trouble
    assert "docs/guide.md" in (ROOT / "README.md").read_text()


def test_every_option_that_is_named_is_taken() -> None:
    named = set(re.findall(r"`((?:[a-z_]+\.)?[a-z_]+=[^`\s]+)`", GUIDE)) - {"model=gpt2"}
    assert len(named) >= 8
    for option in named:
        given = ["data=text", "data.path=few.txt", option]
        with initialize_config_dir(str(request.CONF), version_base="1.3"):
            config.check(request.resolved(compose("train", given)))


def test_every_file_that_is_linked_exists() -> None:
    for name in re.findall(r"\]\(([^)#:]+)[^)]*\)", GUIDE):
        assert (ROOT / "docs" / name).exists(), name


@pytest.mark.slow
def test_every_command_runs_in_order(tmp_path: Path) -> None:
    lines = sorted((ROOT / "llmexp/data/sample").glob("*.txt"))[0].read_text().splitlines()
    (tmp_path / "few.txt").write_text("\n".join(lines[:21]))
    environment = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    said = {}
    for line in COMMANDS:
        done = subprocess.run(
            [sys.executable, *shlex.split(line)[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, line + done.stdout[-2000:] + done.stderr[-2000:]
        said[line] = done.stdout
    heart = next(said[line] for line in COMMANDS if "run.name=heart" in line)
    assert "overfitting since epoch" in heart
    assert "still improving" in next(said[line] for line in COMMANDS if "run.name=first" in line)
