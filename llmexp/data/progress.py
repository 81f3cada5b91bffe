"""How far a long reading has come: a bar on a terminal, a line now and then anywhere else."""

import logging
import os
import sys
import time
from types import TracebackType
from typing import Any

logger = logging.getLogger("llmexp")

SECONDS = 15.0  # between two plain lines


class Progress:
    """Count bytes towards a total."""

    def __init__(self, total: int, what: str) -> None:
        self._total = max(1, total)
        self._what = what
        self._started = self._spoken = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total, desc=what, unit="B", unit_scale=True, leave=False, delay=0.5
            )

    def reach(self, done: int) -> None:
        """Show that `done` bytes are behind us."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._spoken >= SECONDS:
            self._spoken = time.monotonic()
            rate = done / (self._spoken - self._started) / 1e6
            logger.info("%s: %d%%, %.1f MB/s", self._what, 100 * done // self._total, rate)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
