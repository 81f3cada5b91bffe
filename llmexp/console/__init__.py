"""What a person sees of a run: a progress bar on a terminal, plain lines anywhere else."""

import contextlib
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from llmexp.console.words import duration, number, perplexity, printable

_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
_PLAIN_PARTS = 20
_PLAIN_SECONDS = 60.0


class Console:
    """Say how a run goes: to stdout, warnings to stderr. A closed stdout is no error.

    While it is open, it also shows what `logging.getLogger("llmexp")` is told, so that no line
    cuts the bar.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._is_terminal = _is_terminal()
        self._first: tuple[int, float] | None = None
        self._last_line: tuple[int, float] = (-1, -math.inf)
        self._records = _Records(self)
        logger = logging.getLogger("llmexp")
        self._old_level = logger.level
        logger.addHandler(self._records)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)

    def plan(self, lines: Iterable[str]) -> None:
        """Say what will be done, before it is done."""
        self.message("\n".join(lines))

    def report(self, lines: Iterable[str]) -> None:
        """Say what was found, indented below what it belongs to."""
        self.message("\n".join(f"  {line}" for line in lines))

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show loss, learning rate, tokens per second and the time left after `step` of `total`."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        seconds = _seconds_left(self._first, (step, now), total)
        text = "  ".join([*_shown(metrics), *([f"{duration(seconds)} left"] if seconds else [])])
        if self._is_terminal:
            self._move_bar(step, total, text)
        elif self._is_due(step, total, now):
            self._last_line = (step, now)
            self.message(f"step {step:,}/{total:,}  {text}")

    def validation(
        self,
        step: int,
        loss: float,
        *,
        epoch: float,
        epochs: float,
        train_loss: float | None = None,
        is_best: bool,
        best: float | None = None,
        saved: Path | None = None,
    ) -> None:
        """Say what a validation found; `best` is the lowest loss of the validations before it."""
        parts = [f"Epoch {epoch:g}/{epochs:g}", f"step {step:,}"]
        if train_loss is not None:
            parts.append(f"train {number(train_loss)}")
        parts.append(f"val {number(loss)} (perplexity {number(perplexity(loss))})")
        parts.append(_verdict(is_best, best))
        if saved is not None:
            parts.append(f"saved {saved}")
        self.message("  ".join(parts))

    def done(
        self,
        folder: Path,
        *,
        seconds: float,
        state: str = "finished",
        best: float | None = None,
        best_step: int | None = None,
        prompt: str = "Machine learning is",
    ) -> None:
        """Say how the run ended, where everything is, and what to type to hear the model."""
        self._close_bar()
        headline = f"{state.capitalize()} after {duration(seconds)}"
        if best is not None:
            headline += f": best validation loss {number(best)}"
            headline += f" (perplexity {number(perplexity(best))})"
            headline += f" at step {best_step:,}" if best_step is not None else ""
        self.message("\n".join([headline, *_places(folder)]))
        if (folder / "best").is_dir():
            command = f"python -m llmexp.generate run={shlex.quote(str(folder))}"
            self.message(f"Generate from it:\n  {command} prompt={shlex.quote(prompt)}")

    def message(self, text: str) -> None:
        """Print lines without cutting the bar."""
        self._write(text, sys.stdout)

    def warning(self, text: str) -> None:
        """Print lines to stderr without cutting the bar."""
        self._write(f"warning: {text}", sys.stderr)

    def close(self) -> None:
        """Take the bar away and give the log records back."""
        self._close_bar()
        logger = logging.getLogger("llmexp")
        logger.removeHandler(self._records)
        logger.setLevel(self._old_level)

    def __enter__(self) -> "Console":
        """Use the console for the length of a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it, whatever happened."""
        self.close()

    def _is_due(self, step: int, total: int, now: float) -> bool:
        last_step, last_time = self._last_line
        part = max(1, total // _PLAIN_PARTS)
        return (
            last_step < 0
            or step >= total
            or step // part > last_step // part
            or now - last_time >= _PLAIN_SECONDS
        )

    def _move_bar(self, step: int, total: int, text: str) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, file=sys.stdout, dynamic_ncols=True, leave=False, bar_format=_BAR
            )
        with _closed_is_fine(sys.stdout):
            self._bar.n = step
            self._bar.set_postfix_str(text)

    def _close_bar(self) -> None:
        if self._bar is not None:
            with _closed_is_fine(sys.stdout):
                self._bar.close()
            self._bar = None

    def _write(self, text: str, stream: TextIO | None) -> None:
        if stream is None:  # started with the stream closed
            return
        line = printable(text, stream.encoding) + "\n"
        with _closed_is_fine(stream):
            if self._bar is None:
                stream.write(line)
            else:
                self._bar.write(line, file=stream, end="")
            stream.flush()


class _Records(logging.Handler):
    """Hand log records to the console."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        say = self._console.warning if record.levelno >= logging.WARNING else self._console.message
        say(self.format(record))


def _shown(metrics: Mapping[str, float]) -> Iterable[str]:
    for name, label in (("train/loss", "loss"), ("train/learning_rate", "lr")):
        if name in metrics:
            yield f"{label} {number(metrics[name])}"
    if "perf/tokens_per_second" in metrics:
        yield f"{metrics['perf/tokens_per_second']:,.0f} tokens/s"


def _verdict(is_best: bool, best: float | None) -> str:
    was = "" if best is None else f", was {number(best)}"
    if is_best:
        return f"new best{was}"
    return "no best yet" if best is None else f"best stays {number(best)}"


def _seconds_left(first: tuple[int, float], now: tuple[int, float], total: int) -> float | None:
    steps = now[0] - first[0]
    return (now[1] - first[1]) / steps * (total - now[0]) if steps > 0 else None


def _places(folder: Path) -> Iterable[str]:
    yield f"  everything    {folder}"
    for label, name in (
        ("best model", "best"),
        ("last model", "final"),
        ("report", "report.md"),
        ("curves", "loss.png"),
    ):
        if (folder / name).exists():
            yield f"  {label:<12}  {folder / name}"


def _is_terminal() -> bool:
    try:
        is_tty = sys.stdout.isatty()
    except (AttributeError, ValueError):  # no stdout, or a closed one
        return False
    return is_tty and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


@contextlib.contextmanager
def _closed_is_fine(stream: TextIO) -> Iterator[None]:
    """Let a reader leave: neither this write nor the last flush of Python is an error."""
    try:
        yield
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    except ValueError:  # closed within this process
        pass
