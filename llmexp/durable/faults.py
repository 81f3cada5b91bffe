"""Kill the process or fail the disk at the n-th operation: how the promises are proved.

The idea is SQLite's (sqlite.org/testing.html): run the same work with the fault at operation 0, 1,
2, ... until the work gets through, and look at the disk after each.
"""

import errno
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from llmexp.durable import disk
from llmexp.errors import RunError

KILLED = 137  # the exit code a shell reports for kill -9
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
FAULTS = ("kill", "power cut", *ERRORS, "lasting ENOSPC")
Subject = TypeVar("Subject")


def trials(
    prepare: Callable[[], Subject], work: Callable[[Subject], object]
) -> Iterator[tuple[str, Subject]]:
    """Run the work on a fresh subject for each fault at each of its operations.

    Yield what was done, in words, and the subject as the fault left it; the last one of each fault
    got through. The work may answer an error of the disk with OSError or RunError.
    """
    for fault in FAULTS:
        number, running = 0, True
        while running:
            subject = prepare()
            running = _strike(fault, number, partial(work, subject))
            yield f"{fault} at operation {number}", subject
            number += 1


def operations(work: Callable[[], object]) -> list[tuple[str, Path]]:
    """Do the work and return its operations in order."""
    seen: list[tuple[str, Path]] = []
    with hooked(lambda operation, path: seen.append((operation, path))):
        work()
    return seen


@contextmanager
def hooked(hook: Callable[[str, Path], None]) -> Iterator[None]:
    """Announce every operation inside the block to `hook`, before it happens."""
    before, disk.hook = disk.hook, hook
    try:
        yield
    finally:
        disk.hook = before


@contextmanager
def failing(number: int, error: int, *, lasting: bool = False) -> Iterator[list[str]]:
    """Raise OSError(error) at operation `number`, counted from 0, or from there on if `lasting`.

    Yields the list of the operations that failed.
    """
    count, failed = -1, []

    def hook(operation: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count == number or (lasting and count > number):
            failed.append(operation)
            raise OSError(error, os.strerror(error), str(path))

    with hooked(hook):
        yield failed


def killed(number: int, work: Callable[[], object], *, power_cut: bool = False) -> bool:
    """Do the work in a forked child that dies at operation `number`; False: it had fewer.

    A power cut also loses, as zeros, the bytes that were written and not synced.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with hooked(_Death(number, power_cut)):
                work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, KILLED):
        raise RuntimeError(f"the work failed by itself, exit code {code}")
    return code == KILLED


def _strike(fault: str, number: int, work: Callable[[], object]) -> bool:
    if fault in ("kill", "power cut"):
        return killed(number, work, power_cut=fault == "power cut")
    with failing(number, ERRORS[fault.split()[-1]], lasting=" " in fault) as failed:
        try:
            work()
        except (OSError, RunError):
            if not failed:
                raise
    return bool(failed)


class _Death:
    """End the process before operation `number`."""

    def __init__(self, number: int, power_cut: bool) -> None:
        self._left = number
        self._power_cut = power_cut
        # by inode, which renames do not fool: a descriptor, and the bytes that are safe
        self._written: dict[int, tuple[int, int]] = {}

    def __call__(self, operation: str, path: Path) -> None:
        if self._left == 0:
            self._die()
        self._left -= 1
        if operation in ("write", "fsync"):
            status = path.stat()
            if operation == "write" and status.st_ino not in self._written:
                self._written[status.st_ino] = os.open(path, os.O_WRONLY), status.st_size
            elif operation == "fsync" and status.st_ino in self._written:
                self._written[status.st_ino] = self._written[status.st_ino][0], status.st_size

    def _die(self) -> None:
        for descriptor, size in self._written.values():
            lost = os.fstat(descriptor).st_size - size
            if self._power_cut and lost > 0:
                os.pwrite(descriptor, bytes(lost), size)
        os._exit(KILLED)
