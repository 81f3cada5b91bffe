"""One process per run folder: a lock that the kernel frees, however its holder died."""

import contextlib
import fcntl
import json
import os
import socket
from datetime import datetime
from pathlib import Path
from types import TracebackType

from llmexp.durable.files import make_folder
from llmexp.errors import LockedError, RequestError

NAME = ".lock"
_held: set[int] = set()  # file descriptors


class Lock:
    """Hold a run folder, made if it is not there, for this process.

    Raises LockedError naming the holder, RequestError when the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        try:
            make_folder(folder)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RequestError(
                f"cannot write in the run folder {folder}: {error.strerror}. "
                "Choose another with run.name=..."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise LockedError(f"{folder} is in use by {_told(holder)}") from error
        except OSError as error:
            os.close(descriptor)
            raise RequestError(
                f"the file system of {folder} has no locks ({error.strerror}), "
                "and two processes in one run folder would ruin it: work on another disk"
            ) from error
        self._descriptor = descriptor
        _held.add(descriptor)
        self._sign()

    def _sign(self) -> None:
        # only for the message to a second process: a full disk must not cost the run here
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().isoformat(sep=" ", timespec="seconds"),
        }
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)

    def release(self) -> None:
        """Free the folder; the file stays, or two processes could lock two files of one name."""
        if self._descriptor in _held:
            _held.remove(self._descriptor)
            with contextlib.suppress(OSError):  # nobody holds it: name nobody
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _told(holder: bytes) -> str:
    try:
        fields = json.loads(holder)
        return f"process {fields['pid']} on {fields['host']}, since {fields['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process that has only just started"


def _let_go() -> None:
    # a forked child shares the lock and would keep it after its parent was killed
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
