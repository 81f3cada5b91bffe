"""What a person sees, through a real pipe and a real terminal."""

import contextlib
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import pytest

RUN = """
import logging, sys, time
from pathlib import Path
from llmexp.console import Console
log = logging.getLogger("llmexp")
with Console() as console:
    console.plan(["gpt2-nano, 1,012,480 parameters", "16 = 4 x 4"])
    console.report(["1,000 lines"])
    log.info("told by the logger")
    console.step(0, 200, {"eval/loss": 5.0})
    for step in range(1, 201):
        news = step % 10 == 0 or step == 1
        metrics = {"train/loss": 4 - step / 100, "train/learning_rate": 5e-5,
                   "perf/tokens_per_second": 12345.6}
        left = {"_low": 4.0, "": 5.0, "_high": 6.0} if step > 1 else {}
        metrics |= {f"perf/eta_seconds{end}": t * (200 - step) / 19 for end, t in left.items()}
        console.step(step, 200, metrics if news else {})
        time.sleep(0.002)
        if step % 100 == 0:
            best = None if step == 100 else 2.31
            console.validation(step, 2.003, epoch=step / 100, epochs=2, train_loss=2.104,
                               is_best=True, best=best, saved=Path("run/best"))
        if step == 150:
            log.warning("careful")
    console.validation(200, 2.5, epoch=2, epochs=2, is_best=False, best=2.003)
    console.message("sample: \\x1b[2J\\x07 naïve")
    console.done(Path("run"), seconds=75.2, best=2.003, best_step=200, prompt="It's")
log.info("after the end nobody listens")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with a best model and a report, and no CI around."""
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "report.md").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return tmp_path


def _through_a_pipe(**environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", RUN],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=60,
        check=True,
    )


def _through_a_terminal(program: str = RUN, **environment: str) -> tuple[int, str]:
    """Return the exit code of a program, and all that a terminal of 120 columns receives."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, **environment},
    )
    os.close(theirs)
    received = b""
    with contextlib.suppress(OSError):  # raised when the last writer has closed the terminal
        while part := os.read(ours, 65536):
            received += part
    os.close(ours)
    return child.wait(timeout=60), received.decode()


def test_a_pipe_gets_plain_lines(folder: Path) -> None:
    done = _through_a_pipe()
    lines = done.stdout.decode().splitlines()
    assert lines[:4] == [
        "gpt2-nano, 1,012,480 parameters",
        "16 = 4 x 4",
        "  1,000 lines",
        "told by the logger",
    ]
    assert lines[4] == "step 1/200  loss 3.990  lr 5e-05  12,346 tokens/s"
    assert lines[5] == "step 10/200  loss 3.900  lr 5e-05  12,346 tokens/s  40-60 s left"
    assert any(line.startswith("step 200/200 ") and "left" not in line for line in lines)
    assert lines.count(
        "Epoch 2/2  step 200  train 2.104  val 2.003 (perplexity 7.411)  new best, was 2.310"
        "  saved run/best"
    )
    assert "Epoch 2/2  step 200  val 2.500 (perplexity 12.18)  best stays 2.003" in lines
    assert lines[-6:] == [
        "Finished after 1 min 15 s of training: best validation loss 2.003 (perplexity 7.411) at "
        "step 200",
        "  everything    run",
        "  best model    run/best",
        "  report        run/report.md",
        "Generate from it:",
        "  python -m llmexp.generate run=run prompt='It'\"'\"'s'",
    ]
    assert done.stderr.decode() == "warning: careful\n"


def test_a_pipe_gets_no_control_characters_and_few_lines(folder: Path) -> None:
    text = _through_a_pipe().stdout.decode()
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text) is None
    assert "sample: \\x1b[2J\\x07 naïve" in text
    assert 10 <= text.count("tokens/s") <= 22
    assert text.count("step 200/200") == 1


def test_an_encoding_that_cannot_say_it_is_no_error(folder: Path) -> None:
    done = _through_a_pipe(PYTHONIOENCODING="ascii:strict")
    assert b"na\\xefve" in done.stdout


def test_a_terminal_gets_a_bar_that_leaves_whole_lines(folder: Path) -> None:
    code, received = _through_a_terminal()
    assert code == 0
    bars = re.findall(r"\r *(\d+)%\|[^|]*\| (\d+)/200, ([^\r\n]*)", received)
    assert bars
    assert "loss 2.000" in bars[-1][2]
    assert "tokens/s" in bars[-1][2]
    assert any("s left" in bar[2] for bar in bars)
    lines = [line.split("\r")[-1] for line in received.split("\r\n")]
    for line in (
        "told by the logger",
        "warning: careful",
        "sample: \\x1b[2J\\x07 naïve",
        "Generate from it:",
        "Epoch 2/2  step 200  val 2.500 (perplexity 12.18)  best stays 2.003",
    ):
        assert line in lines
    assert received.count("\r\n") < 30


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_terminal_that_cannot_gets_plain_lines(folder: Path, environment: dict[str, str]) -> None:
    code, received = _through_a_terminal(**environment)
    assert code == 0
    assert "\r" not in received.replace("\r\n", "")
    assert "\x1b" not in received


@pytest.mark.parametrize("shell", ["{} | true", "{} | head -1 >/dev/null", "{} >&-", "{} >&- 2>&-"])
def test_a_reader_who_leaves_is_no_error(folder: Path, shell: str) -> None:
    command = shell.format('"$0" -c "$1"')
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}", sys.executable, RUN],
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stderr in (b"", b"warning: careful\n")


def test_a_crash_in_the_middle_takes_the_bar_away(folder: Path) -> None:
    program = (
        "from llmexp.console import Console\n"
        "with Console() as console:\n"
        "    console.step(1, 10, {'train/loss': 1.0})\n"
        "    raise SystemExit(3)\n"
    )
    code, received = _through_a_terminal(program)
    assert code == 3
    assert "1/10" in received
    assert received.rstrip(" ").endswith("\r")
