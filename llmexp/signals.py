"""Turn signals into wishes that the training loop reads between two steps."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

MESSAGE = b"\nllmexp: finishing this step, then saving; Ctrl-C once more stops at once\n"


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside the block: SIGTERM ends the process as Ctrl-C does, by an exception (exit code 143).

    So what is open is closed, and what is half written removed. Outside the main thread nothing
    is installed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stop:
    """Inside the block: SIGTERM and the first Ctrl-C ask to stop, SIGUSR1 asks to save.

    A Ctrl-C after that raises KeyboardInterrupt where it falls. Outside the main thread nothing is
    installed, since Python refuses it there.
    """

    def __init__(self) -> None:
        self.requested: int | None = None  # the exit code, 143 or 130, once a stop was asked for
        self.save_requested = False  # set it back after saving
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number, handler in (
                (signal.SIGTERM, self._terminate),
                (signal.SIGINT, self._interrupt),
                (signal.SIGUSR1, self._save),
            ):
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._ask(128 + number)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self._ask(128 + number)

    def _save(self, number: int, frame: FrameType | None) -> None:
        self.save_requested = True

    def _ask(self, exit_code: int) -> None:
        self.requested = exit_code
        # a handler may fall into the middle of a print: past Python's buffers
        with contextlib.suppress(OSError):
            os.write(2, MESSAGE)
