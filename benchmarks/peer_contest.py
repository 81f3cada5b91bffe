"""Runs of the contestants of benchmarks/peers.py: each a process of its own, watched from outside.

Imports nothing heavy: a child's peak memory begins with that of the process that starts it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer_environment import Environment
from peer_work import LEARNING_RATE, ROOT, WEIGHT_DECAY, Task, as_json, warm_up_steps

LOOK = 0.02  # seconds between two looks at a process
LONGEST = 4 * 3600  # seconds that a process may take
FIRST = b'"train/global_step": 1,'  # of the row of llmexp's first step
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),  # one GPU for each
}
Rows = list[dict[str, float]]


@dataclass(frozen=True)
class Result:
    """How one run of a contestant went."""

    peer: str
    round: int
    tokens_per_second: float = 0.0  # label tokens, within training steps, after the first ones
    memory: float = 0.0  # GiB at the peak: of the process, or of the GPU
    first_step: float = 0.0  # seconds from the command to the end of the first step
    end: float = 0.0  # seconds from the command until the model is saved
    losses: dict[int, float] = field(default_factory=dict)  # of training, by step
    judged: float | None = None  # on the validation examples, after training
    failure: str = ""

    @property
    def last(self) -> float:
        """The loss to compare: on the validation examples, else of the last training steps."""
        return self.judged if self.judged is not None else self.losses[max(self.losses)]


@dataclass(frozen=True)
class Ended:
    """What could be seen of a process from outside."""

    code: int
    started: float  # time.time()
    first: float | None  # seconds until the first step was noticed
    seconds: float
    memory: float  # GiB


def run(task: Task, environment: Environment, *, round: int, seed: int) -> Result:
    """Let a contestant do its task."""
    output = Path(task.output)
    output.mkdir(parents=True)
    command, variables = command_of(task, environment, seed)
    timing = output / "outputs" / "run" / "timing.jsonl"
    ended = watch(command, output, variables, lambda: FIRST in read(timing))
    if ended.code:
        return Result(task.peer, round, failure=complaint(output / "log.txt", ended.code))
    if task.peer == "llmexp":
        return read_llmexp(task, round, ended)
    return read_report(task, round, ended)


def command_of(task: Task, environment: Environment, seed: int) -> tuple[list[str], dict[str, str]]:
    """Return the command of a contestant, and what its environment needs."""
    if task.peer == "llmexp":
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return llmexp_command(task, seed), {"PYTHONPATH": os.pathsep.join(paths)}
    request = Path(task.output) / "task.json"
    request.write_text(as_json(task))
    return [environment.python, str(ROOT / "benchmarks" / "peer_run.py"), str(request)], {}


def llmexp_command(task: Task, seed: int) -> list[str]:
    """Return what a user of llmexp types for this task."""
    work = task.work
    return [
        *(sys.executable, "-m", "llmexp.train"),
        *("model=gpt2", f"model.weights={task.model}", f"model.dropout={task.dropout}"),
        *("data=text", f"data.path={task.folder}/train.txt"),
        f"data.validation_path={task.folder}/validation.txt",
        f"data.max_length={work.length - 1}",  # inputs
        f"data.unit={'block' if work.is_full else 'example'}",
        f"data.cache_dir={Path(task.folder).parent}/cache",
        *(f"train.batch_size={work.batch}", f"train.max_steps={work.steps}"),
        *(f"train.log_every={task.every}", "train.validate_every=1000000"),  # at the end
        "train.validate_first=false",
        *(f"optimizer.lr={LEARNING_RATE}", f"optimizer.weight_decay={WEIGHT_DECAY}"),
        f"schedule.warmup={warm_up_steps(work.steps)}",
        *(f"precision={task.precision}", "logger=none", "samples.prompts=[]"),
        *(f"seed={seed}", "run.name=run"),
    ]


def watch(
    command: list[str], folder: Path, variables: dict[str, str], has_begun: Callable[[], bool]
) -> Ended:
    """Run a command in a folder until it ends, its words in log.txt."""
    first = None
    with (folder / "log.txt").open("wb") as log:
        started = time.time()
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **QUIET, **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while child.returncode is None:
                number, status, usage = os.wait4(child.pid, os.WNOHANG)
                seconds = time.time() - started
                if first is None and has_begun():
                    first = seconds
                if number:
                    child.returncode = os.waitstatus_to_exitcode(status)
                elif seconds > LONGEST:
                    child.kill()
                time.sleep(LOOK)
        finally:
            if child.returncode is None:  # this process was told to stop
                child.kill()
                child.wait()
    unit = 1 if sys.platform == "darwin" else 1024
    return Ended(child.returncode, started, first, seconds, usage.ru_maxrss * unit / 2**30)


def read(path: Path) -> bytes:
    """Return what a file holds, nothing where there is none yet."""
    return path.read_bytes() if path.is_file() else b""


def complaint(log: Path, code: int) -> str:
    """Return the last line that a process said."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), f"exit code {code}")


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Read JSON lines."""
    for line in path.read_text().splitlines():
        yield json.loads(line)


def rate(rows: Rows) -> float:
    """Return the tokens per second between the first row that is not of the first steps, and the
    last."""
    warm = next((row for row in rows if row["step"] >= 2 and row is not rows[-1]), rows[0])
    tokens, seconds = (rows[-1][name] - warm[name] for name in ("tokens", "seconds"))
    return tokens / seconds


def read_report(task: Task, round: int, ended: Ended) -> Result:
    """Read what a peer reported."""
    found = list(lines_of(task.report))
    rows = [row for row in found if "step" in row]
    events = {row["event"]: row for row in found if "event" in row}
    return Result(
        task.peer,
        round,
        tokens_per_second=rate(rows),
        memory=events["done"]["peak"] or ended.memory,
        first_step=rows[0]["clock"] - ended.started,
        end=events["done"]["clock"] - ended.started,
        losses={row["step"]: row["loss"] for row in rows},
        judged=events["judged"]["loss"] if "judged" in events else None,
    )


def read_llmexp(task: Task, round: int, ended: Ended) -> Result:
    """Read the folder of a run of llmexp."""
    folder = Path(task.output) / "outputs" / "run"
    steps = {row["train/global_step"]: row for row in lines_of(folder / "metrics.jsonl")}
    timing = [row for row in lines_of(folder / "timing.jsonl") if "perf/seconds" in row]
    rows = [
        {"step": step, "seconds": row["perf/seconds"], "tokens": steps[step]["train/tokens"]}
        for row in timing
        if (step := row["train/global_step"])
    ]
    gpu = [row["memory/peak_gib"] for row in timing if "memory/peak_gib" in row]
    return Result(
        task.peer,
        round,
        tokens_per_second=rate(rows),
        memory=max(gpu, default=ended.memory),
        first_step=ended.first or ended.seconds,
        end=ended.seconds,
        losses={step: row["train/loss"] for step, row in steps.items() if step},
        judged=None if task.work.is_full else steps[task.work.steps]["eval/loss"],
    )
