"""The real thing, python -m llmexp.train -m: killed within a trial, it ends as if it was not."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SEARCH = (
    "sweep=lr_batch",
    "hydra.sweeper.n_trials=2",
    "hydra.sweeper.study_name=s",
    "train.batch_size=choice(4,16)",
    "train.validate_every=0.5",
    "train.log_every=1",
    "checkpoint.every_steps=2",
    "samples.prompts=[]",
    "data=text",
    "data.path=lines.txt",
    "data.max_length=32",
    "model.architecture={n_layer:1,n_head:2,n_embd:32,n_positions:32,vocab_size:300}",
    "hw=cpu",
)
LONGER = (*SEARCH, "train.epochs=6", "logger=none")  # 25 rows of metrics per trial


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    lines = [f"line {number} says {number * number} to line {number % 7}" for number in range(60)]
    (folder / "lines.txt").write_text("\n".join(lines))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "llmexp.train", "-m", *arguments],
        cwd=folder,
        env=environment | {"WANDB_MODE": "offline"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    process = start(folder, *arguments)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == code, said
    return said


def rows(run_folder: Path) -> list[str]:
    metrics = run_folder / "metrics.jsonl"
    return metrics.read_text().splitlines() if metrics.is_file() else []


def job_of(run_folder: Path) -> int:
    """Return the process that holds the run folder of a trial."""
    lock = run_folder.parent / ".study" / f"s-{int(run_folder.name):05d}.lock"
    return int(lock.read_text().split()[0])


def waits_for(pid: int, number: int) -> bool:
    """Say whether a signal that was sent to a halted process waits there for it to go on."""
    [mask] = re.findall(r"^ShdPnd:\s+(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a sweep that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, *LONGER)
    return folder / "multirun" / "s"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_killed_within_a_trial_ends_with_the_same_runs(
    undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    sweep = start(tmp_path / "killed", *LONGER)
    second = tmp_path / "killed" / "multirun" / "s" / "1"
    while len(rows(second)) < 4:
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.01)
    job = job_of(second)
    os.kill(job, signal.SIGSTOP)  # the sweep looks once a second: the trial could be over by then
    sweep.send_signal(number)
    if number == signal.SIGKILL:
        os.kill(job, signal.SIGKILL)
    else:
        while not waits_for(job, number):
            time.sleep(0.01)
        os.kill(job, signal.SIGCONT)
    assert sweep.wait(60) in (-number, 128 + number)
    sweep.communicate()
    assert len(rows(second)) < len(rows(undisturbed / "1"))

    assert "trial 1 (start 2)" in run(tmp_path / "killed", *LONGER)
    for trial in "01":
        whole, killed = undisturbed / trial, second.parent / trial
        assert rows(whole) == rows(killed)
        best = "best/model.safetensors"
        assert (whole / best).read_bytes() == (killed / best).read_bytes()


@pytest.mark.slow
def test_every_batch_size_is_trained_on_the_same_data(tmp_path: Path) -> None:
    run(tmp_path, *SEARCH, "logger=none", "hydra/sweeper/sampler=grid", "optimizer.lr=choice(1e-3)")
    last = [json.loads(rows(path)[-1]) for path in sorted((tmp_path / "multirun/s").glob("[0-9]"))]
    tokens = {row["train/tokens"] for row in last if "train/tokens" in row}
    assert len(last) == 2
    assert len(tokens) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("train.batch_size=choice(4,0)", "train.batch_size=0"),
        ("train.bach_size=choice(4,8)", "train.batch_size"),
        ("optimizer=choice(adamm,sgd)", "adamw"),
        ("train.max_steps=10", "train.epochs"),
        ("hydra.sweeper.n_trails=2", "n_trails"),
        ("data.path=missing.txt", "missing.txt"),
    ],
)
def test_a_typo_ends_the_sweep_before_any_training(tmp_path: Path, wrong: str, named: str) -> None:
    said = run(tmp_path, *SEARCH, wrong, code=2)
    assert named in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("multirun/*/*/metrics.jsonl"))


def wandb_of(run_folder: Path) -> Any:
    """Return what wandb itself reads of the run in a folder."""
    [fragment] = (run_folder / "wandb").glob("offline-run-*")
    look = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", "--summary"]
    shown = subprocess.run([*look, str(fragment)], capture_output=True, check=True, timeout=60)
    return json.loads(shown.stdout)


@pytest.mark.slow
def test_wandb_shows_each_trial_with_its_number_point_and_end(tmp_path: Path) -> None:
    grid = ("hydra/sweeper/sampler=grid", "train.batch_size=8", "optimizer.lr=choice(1e-3,1e30)")
    run(tmp_path, *SEARCH, *grid)
    shown = [wandb_of(tmp_path / "multirun" / "s" / number) for number in "01"]
    ends = set()
    for number, each in enumerate(shown):
        trial = each["config"]["trial"]
        ends.add((trial["optimizer.lr"], trial["state"]))
        assert (trial["study"], trial["number"]) == ("s", number)
        point = f"optimizer.lr={trial['optimizer.lr']:.4g}"
        assert {f"trial {number}", point, trial["state"]} <= set(each["tags"])
        assert each["summary"]["state"] == trial["state"]
    assert ends == {(1e-3, "finished"), (1e30, "infeasible")}
