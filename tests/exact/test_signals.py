"""A signal in any phase: the run is whole, its exit code says why, its continuation is exact."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import child, command, digest, environment, train

import llmexp.run
from llmexp import data, durable, engine
from llmexp.durable import faults


@pytest.fixture(autouse=True)
def fresh(here: Path) -> None:
    """Begin without an older run."""
    shutil.rmtree("outputs/told", ignore_errors=True)


def strike(number: int) -> None:
    os.kill(os.getpid(), number)


def at(place: str, number: int) -> Callable[[], None]:
    """Return a run that sends itself a signal when it reaches a place."""

    def work() -> None:
        seen = 0

        def count() -> None:
            nonlocal seen
            seen += 1
            if seen == (1 if place == "report.md" else 2):  # the second time: in the midst
                strike(number)

        def on_disk(operation: str, path: Path) -> None:
            if place in str(path) and operation == "write":
                count()

        def calling(module: object, name: str) -> None:
            real = getattr(module, name)

            def called(*arguments: object, **named: object) -> object:
                count()
                return real(*arguments, **named)

            setattr(module, name, called)

        {
            "a step": lambda: calling(engine, "accumulate"),
            "evaluation": lambda: calling(data.Batches, "__getitem__"),
            "generation": lambda: calling(llmexp.run, "continuations"),
        }.get(place, lambda: None)()
        with faults.hooked(on_disk):
            train("told", "resume=auto")

    return work


PHASES = ("a step", "evaluation", "generation", "model.safetensors", "metrics.jsonl", "report.md")


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_ends_with_143_and_the_rest_is_exact(phase: str, whole: dict[str, str]) -> None:
    assert child(at(phase, signal.SIGTERM)) == 143
    train("told", "resume=auto")
    assert digest(Path("outputs/told")) == whole


def test_the_first_interrupt_saves_the_step(whole: dict[str, str]) -> None:
    assert child(at("a step", signal.SIGINT)) == 130
    assert Path("outputs/told/checkpoints/step-00000002").is_dir()
    assert not Path("outputs/told/final").exists()
    train("told", "resume=auto")
    assert digest(Path("outputs/told")) == whole


def test_the_second_interrupt_stops_at_once(whole: dict[str, str]) -> None:
    def twice() -> None:
        real = engine.accumulate

        def called(*arguments: object, **named: object) -> object:
            strike(signal.SIGINT)
            strike(signal.SIGINT)
            return real(*arguments, **named)

        engine.accumulate = called
        train("told", "resume=auto")

    assert child(twice) == 130
    assert not Path("outputs/told/checkpoints/step-00000001").exists()
    train("told", "resume=auto")
    assert digest(Path("outputs/told")) == whole


def test_sigusr1_saves_and_goes_on(whole: dict[str, str]) -> None:
    assert child(at("a step", signal.SIGUSR1)) == 0
    assert digest(Path("outputs/told")) == whole


SMALL = ("train.batch_size=4", "train.micro_batch_size=1")  # several passes per validation


def test_a_signal_leaves_no_half_evaluation(whole: dict[str, str]) -> None:
    def work() -> None:
        real = data.Batches.__getitem__

        def called(self: data.Batches, step: int) -> data.Batch:
            if self._shuffle is False and Path("outputs/told/checkpoints/step-00000000").exists():
                strike(signal.SIGTERM)  # before the second batch of the next validation
            return real(self, step)

        data.Batches.__getitem__ = called
        train("told", "resume=auto", *SMALL)

    assert child(work) == 143
    rows = durable.read_lines(Path("outputs/told/metrics.jsonl"))[0]
    last = rows[-1]["train/global_step"]
    assert [row["train/global_step"] for row in rows if "eval/loss" in row] == [0]
    newest = max(Path("outputs/told/checkpoints").glob("step-*")).name
    assert int(newest.removeprefix("step-")) == last + 1  # done, saved, and its row is owed
    train("told", "resume=auto", *SMALL)
    shutil.rmtree("outputs/four", ignore_errors=True)
    train("four", *SMALL)
    assert digest(Path("outputs/told")) == digest(Path("outputs/four"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_while_it_reads_the_data(here: Path, number: int, code: int) -> None:
    lines = "\n".join(f"the cat sees {n} birds and one red apple." for n in range(200_000))
    (here / "large.txt").write_text(lines)
    process = subprocess.Popen(
        command("told", "data.path=large.txt", "resume=auto"),
        cwd=here,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a shell's background job ignores Ctrl-C, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (here / "outputs/told/.lock").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1.5)
    process.send_signal(number)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == code, told
    assert "Traceback" not in told
    assert [path.name for path in (here / "outputs/told").iterdir()] == [".lock"]
