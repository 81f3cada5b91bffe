"""A long reading shows a bar on a terminal and plain lines anywhere else."""

import fcntl
import os
import pty
import struct
import sys
import termios

import pytest

from llmexp.data import progress
from llmexp.data.progress import Progress


def test_a_log_gets_plain_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0)
    with caplog.at_level("INFO", logger="llmexp"), Progress(200, "tokenising") as shown:
        shown.reach(50)
        shown.reach(200)
    assert [line.split(",")[0] for line in caplog.messages] == [
        "tokenising: 25%",
        "tokenising: 100%",
    ]


def test_a_short_reading_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="llmexp"), Progress(200, "tokenising") as shown:
        shown.reach(200)
    assert not caplog.messages


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.set_blocking(leader, False)
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress(200, "tokenising") as shown:
            assert shown._bar is not None
            shown._bar.delay = 0
            shown._bar.mininterval = 0
            shown.reach(50)
            shown._bar.refresh()
            terminal.flush()
            assert b"tokenising:  25%" in os.read(leader, 4096)
    os.close(leader)
