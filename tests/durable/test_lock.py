"""One run folder, one process; the kernel frees the lock of a dead one."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llmexp.durable import Lock
from llmexp.errors import LockedError, RequestError

HOLD = """
import sys, time
from pathlib import Path
from llmexp.durable import Lock
lock = Lock(Path(sys.argv[1]))
{then}
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path, then: str = "") -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(then=then), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def kill(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_the_second_process_learns_who_holds_it(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
        with pytest.raises(LockedError) as told:
            Lock(tmp_path / "run")
        assert f"process {process.pid} on {socket.gethostname()}, since 20" in str(told.value)
        assert told.value.exit_code == 3
    finally:
        kill(process)
    with Lock(tmp_path / "run"):
        pass


def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    then = """import os
if os.fork() == 0:
    print(os.getpid(), file=sys.stderr, flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(then=then), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    child = int(process.stderr.readline())
    process.stdout.readline()
    try:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Lock(tmp_path):
            os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_a_forked_child_that_ends_does_not_free_its_parents_lock(tmp_path: Path) -> None:
    with Lock(tmp_path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(LockedError, match=f"process {os.getpid()} "):
            Lock(tmp_path)


def test_a_released_lock_is_free(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    lock.release()
    lock.release()
    with Lock(tmp_path), pytest.raises(LockedError):
        Lock(tmp_path)


def test_a_holder_that_has_not_signed_is_no_crash(tmp_path: Path) -> None:
    with Lock(tmp_path):
        (tmp_path / ".lock").write_text("")
        with pytest.raises(LockedError, match="another process that has only just started"):
            Lock(tmp_path)


def test_a_folder_that_cannot_be_written_is_told_before_work_begins(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"cannot write in the run folder .*run.name="):
        Lock(tmp_path / "file" / "run")
