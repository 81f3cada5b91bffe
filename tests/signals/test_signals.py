"""Signals become wishes that the loop reads; only the second Ctrl-C breaks in."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest

from llmexp.signals import Stop

LOOP = """
import sys, time
from llmexp.signals import Stop
with Stop() as stop:
    for step in range(600):
        print("step" if stop.requested is None else "asked", flush=True)
        time.sleep(0.05)
        if stop.save_requested:
            print("saved", flush=True)
            stop.save_requested = False
        if stop.requested and "deaf" not in sys.argv:
            print("saved and closed", flush=True)
            sys.exit(stop.requested)
"""


def run(signals: Sequence[tuple[str, int]], *arguments: str) -> tuple[int, str, str]:
    """Send the signals to a loop, each after a line: two that come at once may become one."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    seen = ""
    for line, number in signals:
        while not seen.endswith(f"{line}\n"):
            assert process.poll() is None, seen
            seen += process.stdout.readline()
        process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    return process.returncode, seen + rest, errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_step_is_finished_and_the_exit_code_says_why(number: int, code: int) -> None:
    returncode, output, errors = run([("step", number)])
    assert returncode == code
    assert output.endswith("saved and closed\n")
    assert "finishing this step, then saving" in errors


def test_the_second_interrupt_stops_at_once() -> None:
    returncode, output, errors = run([("step", signal.SIGINT), ("asked", signal.SIGINT)], "deaf")
    assert returncode == -signal.SIGINT
    assert "saved and closed" not in output
    assert "KeyboardInterrupt" in errors


def test_sigusr1_asks_to_save_and_the_loop_goes_on() -> None:
    returncode, output, _ = run(
        [("step", signal.SIGUSR1), ("saved", signal.SIGUSR1), ("step", signal.SIGTERM)]
    )
    assert returncode == 143
    assert "saved\n" in output


def test_an_interrupt_after_a_wish_to_stop_breaks_in() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == 143


def test_the_old_handlers_come_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with Stop():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    found: list[object] = []

    def work() -> None:
        with Stop() as stop:
            found.extend([signal.getsignal(signal.SIGTERM), stop.requested])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before, None]
