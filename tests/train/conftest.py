"""A run as a user starts one: a process, a folder, files."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = (
    "model.architecture={n_layer:2,n_head:2,n_embd:32,n_positions:128,vocab_size:400}",
    "data.max_length=64",
    "samples.max_new_tokens=8",
    "train.log_every=2",
    "logger=none",
    "hw=cpu",
)
LINES = [
    f"{who} {does} {what} {number}."
    for number in ("once", "twice", "today")
    for who in ("the cat", "a small bird", "my old friend", "she")
    for does in ("sees", "likes", "finds")
    for what in ("the sea", "one red apple and some bread", "it")
]

Run = Callable[..., subprocess.CompletedProcess[str]]


def llmexp(command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m llmexp.<command>` in `cwd`, without a terminal."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cwd / "cache")}
    environment.pop("WANDB_API_KEY", None)
    return subprocess.run(
        [sys.executable, "-m", f"llmexp.{command}", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command of llmexp in a folder of its own that holds lines.txt."""
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    return lambda command, *arguments: llmexp(command, *arguments, cwd=tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder and the output of one finished small run, shared by the tests that only
    look."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "lines.txt").write_text("\n".join(LINES))
    done = llmexp(
        "train",
        "data=text",
        "data.path=lines.txt",
        "run.name=first",
        *SMALL,
        "train.epochs=4",
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "outputs" / "first", done.stdout
