"""Killed at any instant, any number of times: nothing lost, nothing changed."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_runs import command, digest, environment, run, train

from llmexp import checkpoint
from llmexp.durable import faults

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def finishes_exactly(name: str, *numbers: int, power_cut: bool) -> dict[str, str]:
    """Kill a run at operation `numbers[0]`, its continuation at `numbers[1]`, ...; then let it
    end."""
    for number in numbers:
        faults.killed(number, lambda: train(name, "resume=auto"), power_cut=power_cut)
    train(name, "resume=auto")
    return digest(Path("outputs") / name)


@pytest.mark.parametrize("power_cut", [False, True])
def test_killed_three_times_at_an_operation_on_the_disk(
    here: Path, whole: dict[str, str], power_cut: bool
) -> None:
    name = f"thrice{power_cut}"
    assert finishes_exactly(name, 60, 90, 100, power_cut=power_cut) == whole


@pytest.mark.slow
def test_killed_at_every_sixteenth_operation_of_a_whole_run(
    here: Path, whole: dict[str, str]
) -> None:
    count = len(faults.operations(lambda: train("counted")))
    assert count > 300
    for number in range(0, count, 16):
        # the continuation is killed as well: on its way in, or further on
        again = finishes_exactly("any", number, 7 + number // 3, power_cut=number % 32 == 0)
        assert again == whole, number
        shutil.rmtree("outputs/any")


def rows(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


@pytest.mark.slow
def test_the_real_command_killed_at_random_times(here: Path) -> None:
    longer = ("train.max_steps=120", "checkpoint.every_steps=5", "resume=auto")
    assert run(*command("calm", *longer), cwd=here).returncode == 0
    metrics = here / "outputs/restless/metrics.jsonl"
    letters, kills = random.Random(0), 0
    for _ in range(60):
        process = subprocess.Popen(
            command("restless", *longer),
            cwd=here,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        waited = time.monotonic() + 60
        # in rows: a fast machine would be at its end after five times a fraction of a second
        until = rows(metrics) + letters.randint(1, 12)
        while process.poll() is None and time.monotonic() < waited and rows(metrics) < until:
            time.sleep(0.01)  # the import alone takes seconds
        time.sleep(letters.uniform(0, 0.05))
        if process.poll() is None and kills < 5:
            kills += 1
            os.kill(process.pid, signal.SIGKILL)
        errors = process.communicate(timeout=120)[1]
        assert process.returncode in (0, -signal.SIGKILL), errors
        if process.returncode == 0:
            break
    assert kills >= 5
    assert digest(here / "outputs/restless") == digest(here / "outputs/calm")


def damaged(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data if damage == "flip" else data[: len(data) // 2])


@pytest.mark.parametrize("damage", ["flip", "cut"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_costs_steps_not_the_result(
    here: Path, whole: dict[str, str], name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("outputs/damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree("outputs/whole", folder)
    damaged(folder / "checkpoints/step-00000006" / name, damage)
    train("damaged", "resume=auto")
    told = capsys.readouterr()
    assert digest(folder) == whole
    assert f"step-00000006 is not used: {name}" in told.err
    assert "continuing outputs/damaged at step 5" in told.out
    assert checkpoint.defect(folder / "checkpoints/step-00000006") is None  # written anew
