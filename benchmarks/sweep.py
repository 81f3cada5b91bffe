"""What a search with pruning is worth, beside the same number of points on a grid.

    python benchmarks/sweep.py [--epochs 1.5] [--trials 24] > benchmarks/results/sweep.md

Part 1 trains gpt2-nano on the shipped text: learning rate x batch size, as many runs for each way
(plain Hydra: its grid and its launcher, all runs in one process; our search without pruning; our
search with it), one way after the other. Tokens trained say what a way costs on any machine;
seconds are those of this one.
Part 2 sweeps over a task that does nothing: what a job costs beside its training.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT / "tests" / "sweep" / "toy" / "task.py"
LOW, HIGH = 6e-5, 6e-2  # conf/sweep/lr_batch.yaml at the model's learning rate of 3e-3
BATCHES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Outcome:
    """What one way of searching came to."""

    seconds: float
    processor: float  # seconds of it, of all processes, which other work disturbs less
    training: float  # seconds within training steps
    tokens: int
    best: float  # nats per label token
    at: str
    stopped: int  # runs that were pruned


def train(folder: Path, arguments: list[str]) -> tuple[float, float]:
    """Run `python -m llmexp.train -m`; return its seconds, and those of the processor."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started, before = time.perf_counter(), os.times()
    subprocess.run(
        [sys.executable, "-m", "llmexp.train", "-m", *arguments],
        cwd=folder,
        env=environment,
        check=True,
        stdout=sys.stderr,
    )
    after = os.times()
    processor = after.children_user + after.children_system
    processor -= before.children_user + before.children_system
    return time.perf_counter() - started, processor


def outcome(runs: Path, seconds: tuple[float, float], planned_epochs: float) -> Outcome:
    """Read what the runs of a sweep left."""
    best, at, tokens, training, stopped = float("inf"), "", 0, 0.0, 0
    for folder in sorted(path.parent for path in runs.rglob("metrics.jsonl")):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        spent = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
        tokens += max(row.get("train/tokens", 0) for row in rows)
        training += max(row.get("perf/seconds", 0.0) for row in spent)
        stopped += max(row.get("train/epoch", 0) for row in rows) < planned_epochs
        lowest = min(row["eval/loss"] for row in rows if isinstance(row.get("eval/loss"), float))
        if lowest < best:
            words = (folder / ".hydra" / "overrides.yaml").read_text().split()
            point = [word for word in words if word.startswith(("optimizer.lr", "train.batch"))]
            best, at = lowest, ", ".join(point)
    return Outcome(*seconds, training, tokens, best, at, stopped)


def ways(trials: int) -> dict[str, list[str]]:
    """Return the arguments of each way to spend so many runs."""
    count = trials // len(BATCHES)
    rates = [LOW * (HIGH / LOW) ** (i / max(count - 1, 1)) for i in range(count)]
    search = ["sweep=lr_batch", f"hydra.sweeper.n_trials={trials}", "hydra.sweeper.study_name=s"]
    return {
        "plain Hydra grid": [
            "hydra/launcher=basic",
            f"optimizer.lr={','.join(f'{rate:.4g}' for rate in rates)}",
            f"train.batch_size={','.join(map(str, BATCHES))}",
        ],
        "our search, not pruned": [*search, "hydra/sweeper/pruner=none"],
        "our search, pruned": search,
    }


def searches(epochs: float, trials: int) -> Iterator[tuple[str, Outcome]]:
    """Run every way once."""
    common = [
        f"train.epochs={epochs}",
        f"train.validate_every={epochs / 12}",
        "data.val_size=0.05",
        "samples.prompts=[]",
        "logger=none",
    ]
    for name, arguments in ways(trials).items():
        folder = Path(tempfile.mkdtemp(prefix="llmexp-sweep-"))
        seconds = train(folder, [*common, *arguments])
        yield name, outcome(folder / "multirun", seconds, epochs)
        shutil.rmtree(folder)


def overhead(jobs: int) -> dict[str, float]:
    """Return the seconds per job of a task that does nothing, launched in several ways."""
    grid = f"optimizer.lr={','.join(f'{1e-5 * (i + 1):.1e}' for i in range(jobs))}"
    search = ["hydra/sweeper=optuna", f"hydra.sweeper.n_trials={jobs}", "hydra.sweeper.check=null"]
    search += ["optimizer.lr=tag(log,interval(1e-6,1e-3))"]
    seconds = {}
    for name, arguments in {
        "Hydra's grid, Hydra's launcher (all in one process)": [grid, "hydra/launcher=basic"],
        "Hydra's grid, a process each": [grid],
        "our search, Hydra's launcher": [*search, "hydra/launcher=basic"],
        "our search, a process each": search,
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, str(TOY), "-m", *arguments],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds[name] = (time.perf_counter() - started) / jobs
    return seconds


def main() -> None:
    """Print both parts as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=float, default=1.5)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="in words")
    given = parser.parse_args()
    print(f"# python benchmarks/sweep.py --epochs {given.epochs} --trials {given.trials}\n")
    print(f"{date.today()}, {given.machine}, one thread, load {os.getloadavg()[0]:.1f} before.")
    versions = [f"{name} {version(name)}" for name in ("torch", "hydra-core", "optuna")]
    print(f"Python {platform.python_version()}, {', '.join(versions)}.\n")
    if given.trials:
        print(f"gpt2-nano, sample, {given.trials} runs of {given.epochs} epochs each way:\n")
        print(
            "| | seconds | of the processor | in steps | tokens | stopped | best eval/loss | at |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for name, found in searches(given.epochs, given.trials):
            seconds = f"{found.seconds:,.0f} | {found.processor:,.0f} | {found.training:,.0f}"
            numbers = f"{seconds} | {found.tokens:,}"
            rest = f"{found.stopped} | {found.best:.4f} | {found.at}"
            print(f"| {name} | {numbers} | {rest} |", flush=True)
        print()
    print(f"A task that does nothing, {given.jobs} jobs, everything included:\n")
    print("| | seconds a job |")
    print("|---|---|")
    for name, each in overhead(given.jobs).items():
        print(f"| {name} | {each:.2f} |", flush=True)


if __name__ == "__main__":
    main()
