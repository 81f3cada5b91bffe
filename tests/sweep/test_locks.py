"""A lock lives as long as its process: kill -9 frees it, and a forked child does not keep it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmexp.sweep.locks import Lock, held, owner

HOLD = """
import os, sys
from pathlib import Path
from llmexp.sweep.locks import Lock
lock = Lock(Path(sys.argv[1]))
assert lock.acquire()
if os.fork() == 0:  # such as a data loader: it inherits the file, not the claim
    sys.stdin.read()
    os._exit(0)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "x.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_dies_with_its_process(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    assert held(path)
    assert not Lock(path).acquire(seconds=0.1)
    assert owner(path)[0] == holder.pid
    holder.kill()
    holder.wait()
    assert not held(path)
    assert Lock(path).acquire()
    holder.communicate()


def test_looking_at_our_own_lock_does_not_lose_it(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with Lock(path):
        assert held(path)
        assert not Lock(path).acquire()
        look = f"from llmexp.sweep.locks import *; print(held(Path({str(path)!r})))"
        seen = subprocess.run(
            [sys.executable, "-c", look], capture_output=True, text=True, cwd=os.getcwd()
        )
        assert seen.stdout.strip() == "True", seen.stderr
    assert not held(path)


def test_no_file_means_nobody(tmp_path: Path) -> None:
    assert not held(tmp_path / "none")
    assert owner(tmp_path / "none") == (0, "")
