"""The wall between training and a logger: calls run on a thread, and their errors end there."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger("llmexp")


class Worker:
    """Run calls in order on a background thread; a feature that fails is then left out."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._calls: SimpleQueue[tuple[str, Callable[[], object]] | None] = SimpleQueue()
        self._failed: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=f"llmexp {name}", daemon=True)
        self._thread.start()

    def submit(self, feature: str, call: Callable[[], object]) -> None:
        """Queue one call and return at once."""
        self._calls.put((feature, call))

    def close(self, timeout: float) -> bool:
        """Wait for the queued calls, `timeout` seconds at most; tell whether all of them ended."""
        self._calls.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            feature, call = item
            if feature not in self._failed:
                self._attempt(feature, call)

    def _attempt(self, feature: str, call: Callable[[], object]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # wandb.teardown leaves by sys.exit
            self._failed.add(feature)
            reason = " ".join(str(error).split())[:200] or "no reason given"
            log.warning(
                f"{self.name}: {feature} failed ({type(error).__name__}: {reason});"
                " left out from here on. Training and the run's own files are not affected."
            )
