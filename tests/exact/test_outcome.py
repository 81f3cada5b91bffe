"""A run that ends by itself says how; one that was killed, or goes on, says nothing."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import child, digest, train

from llmexp import durable, engine, outcome
from llmexp.compare import runs
from llmexp.errors import RequestError, RunError

FOLDER = Path("outputs/ended")


@pytest.fixture(autouse=True)
def fresh(here: Path) -> None:
    """Begin without an older run."""
    shutil.rmtree(FOLDER, ignore_errors=True)


def at_step_two(does: Callable[[], None]) -> int:
    """Run in a process of its own, which does something in its second step; say how that ends."""

    def work() -> None:
        real, seen = engine.accumulate, []

        def called(*arguments: object, **named: object) -> object:
            seen.append(None)
            if len(seen) == 2:
                does()
            return real(*arguments, **named)

        engine.accumulate = called
        train("ended", "resume=auto")

    return child(work)


def fail() -> None:
    raise RunError("the disk is full\nmake room")


def crash() -> None:
    raise ValueError("no such\nthing")


def says() -> tuple[str, str | None]:
    return runs.end_of(FOLDER)


@pytest.mark.parametrize(
    ("does", "code", "told"),
    [
        (fail, 1, ("failed", "the disk is full")),
        (crash, 1, ("failed", "ValueError: no such")),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, ("stopped by a signal", None)),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 137, ("killed", None)),
    ],
)
def test_the_folder_says_how_the_run_ended_and_the_rest_is_exact(
    does: Callable[[], None], code: int, told: tuple[str, str | None], whole: dict[str, str]
) -> None:
    assert at_step_two(does) == code
    assert says() == told
    train("ended", "resume=auto")
    assert digest(FOLDER) == whole
    assert says() == ("finished", None)
    assert outcome.read(FOLDER) == {"outcome": "finished", "step": 6}


@pytest.mark.parametrize("ended", ["failed", "finished"])
def test_what_was_said_before_is_no_more_once_the_run_goes_on(ended: str) -> None:
    at_step_two(fail) if ended == "failed" else train("ended", "resume=auto")
    assert says()[0] == ended

    def look_and_die() -> None:
        assert says() == ("running", None)
        os.kill(os.getpid(), signal.SIGKILL)

    real = engine.fit
    engine.fit = lambda **named: look_and_die()
    try:
        assert child(lambda: train("ended", "resume=auto", "train.max_steps=8")) == 137
    finally:
        engine.fit = real
    assert says() == ("killed", None)


def test_a_request_that_is_refused_changes_nothing_of_what_the_run_says() -> None:
    at_step_two(fail)
    with pytest.raises(RequestError):
        train("ended", "resume=auto", "seed=7")
    assert says() == ("failed", "the disk is full")
    (FOLDER / outcome.FILE).unlink()
    with pytest.raises(RequestError):
        train("ended", "resume=auto", "seed=7")
    assert says() == ("killed", None)


def test_an_error_after_the_end_does_not_undo_it() -> None:
    outcome.write(FOLDER.parent, "patience", 3)
    with outcome.told_if_failed(FOLDER.parent):
        pass
    with pytest.raises(KeyboardInterrupt), outcome.told_if_failed(FOLDER.parent):
        outcome.write(FOLDER.parent, "pruned", 3)
        raise KeyboardInterrupt
    assert outcome.read(FOLDER.parent) == {"outcome": "pruned", "step": 3}


def test_a_secret_in_an_error_stays_out_of_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2hunter2")
    durable.make_folder(FOLDER)
    with pytest.raises(OSError, match="hunter2"), outcome.told_if_failed(FOLDER):
        raise OSError("hub said no to hunter2hunter2")
    assert outcome.read(FOLDER) == {"outcome": "failed", "error": "OSError: hub said no to ***"}
