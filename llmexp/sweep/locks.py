"""Who is alive: POSIX record locks on small files.

The kernel frees such a lock when its process ends, kill -9 included, and forked children (data
loaders) do not inherit it. So there are no heartbeats, no grace periods and no stale locks.
"""

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from llmexp.errors import RequestError

_held_here: set[Path] = (
    set()
)  # closing any descriptor of a file frees the lock: never probe our own


class Lock:
    """The exclusive lock of one file; it holds the pid and the host of its owner."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._descriptor = -1

    def acquire(self, seconds: float = 0.0) -> bool:
        """Take the lock, waiting for at most so many seconds; say whether it is ours."""
        if self.path in _held_here:
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        give_up = time.monotonic() + seconds
        while not _try(descriptor, self.path):
            if time.monotonic() >= give_up:
                os.close(descriptor)
                return False
            time.sleep(0.02)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor
        _held_here.add(self.path)
        return True

    def release(self) -> None:
        """Give the lock back; the file stays."""
        if self._descriptor >= 0:
            _held_here.discard(self.path)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Lock":
        if not self.acquire(seconds=60.0):
            raise RequestError(f"{self.path} is locked by pid and host {owner(self.path)}.")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def held(path: Path) -> bool:
    """Say whether a live process, this one or another, holds the lock of a file."""
    path = path.absolute()
    if path in _held_here:
        return True
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _try(descriptor, path)
    finally:
        os.close(descriptor)


def owner(path: Path) -> tuple[int, str]:
    """Return the pid and the host that took the lock last; (0, "") if nobody ever did."""
    with contextlib.suppress(OSError, ValueError):
        pid, host = path.read_text().split()
        return int(pid), host
    return 0, ""


def _try(descriptor: int, path: Path) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise RequestError(
            f"The file system of {path.parent} has no working locks ({error.strerror}), and "
            "without them a dead trial looks like a live one. Take another: hydra.sweep.dir=..."
        ) from error
    return True
