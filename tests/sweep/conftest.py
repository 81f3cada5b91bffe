"""Sweeps of a task made of arithmetic (toy/task.py) as commands: what one types, and may kill."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
TASK = Path(__file__).parent / "toy" / "task.py"
SPACE = (
    "optimizer.lr=tag(log,interval(1e-6,1e-3))",
    "train.batch_size=choice(4,8,16,32)",
)


class Toy:
    """The toy's command line in one folder, and what its study holds afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.address: str | None = None  # of the storage, if it is not the journal

    def start(self, *arguments: str, sweeper: str = "optuna", **environment: str) -> Any:
        """Start a sweep, in a session of its own."""
        study = ["hydra.sweeper.study_name=toy", "hydra.sweeper.check=null", *SPACE]
        command = [sys.executable, str(TASK), "-m", f"hydra/sweeper={sweeper}"]
        process = subprocess.Popen(
            [*command, *(study if sweeper == "optuna" else []), *arguments],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, code: int = 0, **more: str) -> str:
        """Run a sweep to its end, expect an exit code, and return what it said."""
        process = self.start(*arguments, **more)
        said: str = process.communicate(timeout=120)[0]
        assert process.returncode == code, said
        return said

    def study(self, name: str = "toy") -> Any:
        """Return the study as Optuna sees it."""
        import optuna

        from llmexp.sweep.storage import connect

        journal = str(self.folder / "multirun" / "toy" / "study.journal")
        return optuna.load_study(study_name=name, storage=connect(self.address or journal))

    def states(self) -> list[str]:
        """Return how the trials ended, by number."""
        return [t.user_attrs.get("state", t.state.name.lower()) for t in self.study().trials]

    def evaluated(self) -> dict[str, int]:
        """Return how many validations the folder of each trial holds."""
        found = (self.folder / "multirun" / "toy").glob("*/evaluated.jsonl")
        return {path.parent.name: len(path.read_text().splitlines()) for path in found}

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until something holds."""
        give_up = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up
            time.sleep(0.02)

    def job_pids(self) -> list[int]:
        """Return the processes that trials ran in, in the order of their starts."""
        starts = self.folder / "starts.txt"
        lines = starts.read_text().splitlines() if starts.exists() else []
        return [int(line.split()[1]) for line in lines]


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    """Return a sweep in an empty folder; whatever it left running ends with the test."""
    sweep = Toy(tmp_path)
    yield sweep
    for process in sweep.started:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()
    for pid in sweep.job_pids():
        if _is_ours(pid):
            os.kill(pid, 9)


def _is_ours(pid: int) -> bool:
    command = Path(f"/proc/{pid}/cmdline")
    return command.exists() and str(TASK).encode() in command.read_bytes()


def losses(path: Path) -> list[float]:
    """Return what a trial evaluated."""
    return [json.loads(line) for line in path.read_text().splitlines()]
