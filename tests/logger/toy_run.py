"""A run without a model: it writes the files of a run and tells a logger, as training does."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from llmexp.logger import Logger, RunInfo

WANDB = str(Path(sys.executable).with_name("wandb"))


def run_info(folder: Path, **changes: Any) -> RunInfo:
    """Return a run in `folder` as the training command tells it to a logger."""
    folder.mkdir(exist_ok=True)
    told: dict[str, Any] = {
        "id": "run00001",
        "name": "lr=1e-5",
        "dir": folder,
        "metrics_file": folder / "metrics.jsonl",
        "tags": ("gpt2-nano", "sample"),
        "config": {"optimizer": {"lr": 1e-5}, "model": {"name": "gpt2-nano"}},
    }
    return RunInfo(**{**told, **changes})


def train(logger: Logger, info: RunInfo, steps: range, *, state: str = "finished") -> None:
    """Do what a run does: write its own files first, then tell the logger, and finish."""
    logger.start(info)
    for step in steps:
        train_step(logger, info.dir, step)
    logger.finish(state, {"best/eval_loss": 2.0})


def train_step(logger: Logger, folder: Path, step: int) -> None:
    """One step: its loss, and every fifth one a validation and a sample."""
    rows = [("metrics", {"train/loss": 4 - step / 100}), ("timing", {"perf/seconds": step / 10})]
    if step % 5 == 0:
        rows.append(("metrics", {"eval/loss": abs(step - 10) / 10 + 2}))
    for name, row in rows:
        append(folder / f"{name}.jsonl", {"train/global_step": step, **row})
        logger.log(step, row)
    if step % 5 == 0:
        sample = {"prompt": "<b>The", "text": f"answer {step}"}
        append(folder / "samples.jsonl", {"train/global_step": step, **sample})
        logger.samples(step, [sample])


def cut(folder: Path, last_step: int) -> None:
    """Cut the run's files back to a checkpoint, as a resume does."""
    for file in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [row for row in rows if row["train/global_step"] <= last_step]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept))


def append(file: Path, row: dict[str, Any]) -> None:
    """Add one line to a .jsonl file."""
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")


def fragments(folder: Path) -> list[Path]:
    """Return what `wandb sync` would look at in a run folder."""
    return sorted(path for path in (folder / "wandb").glob("*run-*-*") if path.is_dir())


def inspect(folder: Path, *options: str) -> list[dict[str, Any]]:
    """Return what wandb itself reads in the one fragment of a run folder."""
    [fragment] = fragments(folder)
    command = [WANDB, "leet", "inspect", "--json", *options, str(fragment)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    if "--summary" in options:
        return [json.loads(shown)]
    return [json.loads(line) for line in shown.splitlines()]


def sync(line: str) -> None:
    """Do what a line of the logger says about uploading later."""
    _, _, command = line.partition("upload later: wandb ")
    subprocess.run([WANDB, *shlex.split(command)], check=True, timeout=60, capture_output=True)
