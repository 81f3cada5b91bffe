"""Two ways to show lines and progress: a bar on a terminal, lines of text anywhere else.

A reader who leaves (a closed pipe) is no error, here or when Python flushes at its end.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from llmexp.console.words import printable

_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
_BAR_SECONDS = 0.1
_LINES = 20
_LINE_SECONDS = 60.0


class Lines:
    """Plain text: a line of progress for every twentieth of the run, and at least one a minute."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a logger speaks from its own thread
        self._shown: tuple[int, float] | None = None

    def progress(self, step: int, total: int, text: str, *, has_news: bool) -> None:
        """Show where the run is, if a line is due."""
        now = time.monotonic()
        if self._is_due(step, total, now, has_news=has_news):
            self._shown = (step, now)
            self.write(f"step {step:,}/{total:,}  {text}".rstrip(), sys.stdout)

    def write(self, text: str, stream: TextIO | None) -> None:
        """Print lines; `stream` is None where the program was started with it closed."""
        if stream is not None:
            with self.lock, _reader_may_leave(stream):
                self.put(printable(text, stream.encoding) + "\n", stream)
                stream.flush()

    def put(self, line: str, stream: TextIO) -> None:
        """Hand one printable text to the stream."""
        stream.write(line)

    def close(self) -> None:
        """Leave nothing behind on the screen."""

    def _is_due(self, step: int, total: int, now: float, *, has_news: bool) -> bool:
        if self._shown is None:
            return has_news
        last_step, last_time = self._shown
        part = max(1, total // _LINES)
        crossed = step // part > last_step // part or (step >= total > last_step)
        return (has_news and crossed) or now - last_time >= _LINE_SECONDS


class Bar(Lines):
    """A progress bar below the lines."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._moved = 0.0

    def progress(self, step: int, total: int, text: str, *, has_news: bool) -> None:
        """Move the bar, ten times a second at most."""
        now = time.monotonic()
        if now - self._moved < _BAR_SECONDS and step < total:
            return
        self._moved = now
        with self.lock, _reader_may_leave(sys.stdout):
            if self._bar is None:
                self._bar = _new_bar(total)
            self._bar.n = step
            self._bar.set_postfix_str(text)

    def put(self, line: str, stream: TextIO) -> None:
        """Print above the bar."""
        if self._bar is None:
            stream.write(line)
        else:
            self._bar.write(line, file=stream, end="")

    def close(self) -> None:
        """Take the bar away."""
        with self.lock:
            if self._bar is not None:
                with _reader_may_leave(sys.stdout):
                    self._bar.close()
                self._bar = None


def display() -> Lines:
    """Return a bar where somebody looks at a terminal that can show one, else plain lines."""
    try:
        is_terminal = sys.stdout.isatty()
    except (AttributeError, ValueError):  # no stdout, or a closed one
        is_terminal = False
    if is_terminal and os.environ.get("TERM") != "dumb" and not os.environ.get("CI"):
        return Bar()
    return Lines()


def _new_bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, file=sys.stdout, dynamic_ncols=True, leave=False, bar_format=_BAR)


@contextlib.contextmanager
def _reader_may_leave(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    except ValueError:  # closed within this process
        pass
