"""What a person sees of a run, in words."""

import logging
import math
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from llmexp.console.display import display
from llmexp.console.words import duration, number, perplexity, span


class Console:
    """Say how a run goes: to stdout, warnings to stderr. A closed stdout is no error.

    While it is open, it also shows what `logging.getLogger("llmexp")` is told, so that no line
    cuts the progress bar.
    """

    def __init__(self) -> None:
        self._display = display()
        self._heard = 0.0  # when the last metrics came
        self._metrics: dict[str, float] = {}
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
        """Show how far the run is and what is left; without new metrics the last ones stay."""
        now = time.monotonic()
        known, self._metrics = self._metrics, self._metrics | dict(metrics)
        if self._metrics != known:
            self._heard = now
        has_news = self._metrics != known and "train/loss" in metrics
        left = _time_left(self._metrics, now - self._heard) if step < total else ()
        parts = [*_shown(self._metrics), *left]
        self._display.progress(step, total, "  ".join(parts), has_news=has_news)

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
        verdict: str = "",
        saved: Path | None = None,
    ) -> None:
        """Say what a validation found; `best` is the lowest loss of the validations before it.

        `verdict` is what that means, in a word or two.
        """
        parts = [f"Epoch {epoch:g}/{epochs:g}", f"step {step:,}"]
        if train_loss is not None:
            parts.append(f"train {number(train_loss)}")
        parts.append(f"val {number(loss)} (perplexity {number(perplexity(loss))})")
        means = f": {verdict}" if verdict and best is not None else ""
        parts.append(f"{_verdict(is_best, best)}{means}")
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
        """Say how the run ended, where everything is, and what to type to hear the model.

        `seconds` are those of the training steps: validations, samples and saves come on top.
        """
        self._display.close()
        headline = f"{state.capitalize()} after {duration(seconds)} of training"
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
        self._display.write(text, sys.stdout)

    def warning(self, text: str) -> None:
        """Print lines to stderr without cutting the bar."""
        self._display.write(f"warning: {text}", sys.stderr)

    def close(self) -> None:
        """Take the bar away and give the log records back."""
        self._display.close()
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


def _time_left(metrics: Mapping[str, float], since: float) -> Iterable[str]:
    """Say the forecast of the last metrics, which came `since` seconds ago."""
    names = ("perf/eta_seconds_low", "perf/eta_seconds", "perf/eta_seconds_high")
    times = [max(0.0, metrics[name] - since) for name in names if name in metrics]
    if len(times) == len(names) and math.isfinite(times[-1]):
        yield f"{span(*times)} left"


def _verdict(is_best: bool, best: float | None) -> str:
    was = "" if best is None else f", was {number(best)}"
    if is_best:
        return f"new best{was}"
    return "no best yet" if best is None else f"best stays {number(best)}"


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
