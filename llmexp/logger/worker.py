"""The wall between training and a logger: calls run on a thread, and their errors end there."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger("llmexp")

Call = Callable[[], object]
NOT_AFFECTED = "training and the run's own files are not affected"


class Worker:
    """Run calls in order on a background thread.

    A feature that fails is said once and left out from then on; when a vital one fails, all are.
    """

    def __init__(self, name: str, *, vital: tuple[str, ...]) -> None:
        self._name = name
        self._vital = vital
        self._calls: SimpleQueue[tuple[str, Call] | None] = SimpleQueue()
        self._failed: set[str] = set()
        self._is_off = False
        self._thread = threading.Thread(target=self._work, name=f"llmexp {name}", daemon=True)
        self._thread.start()

    def submit(self, feature: str, call: Call) -> None:
        """Queue one call and return at once."""
        self._calls.put((feature, call))

    def close(self, last: Call) -> None:
        """Queue the last call, which runs whatever has failed before, and return at once."""
        self._calls.put(("finish", last))
        self._calls.put(None)

    def join(self, timeout: float) -> bool:
        """Wait `timeout` seconds at most for what is queued; tell whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            feature, call = item
            if feature == "finish" or not (self._is_off or feature in self._failed):
                self._attempt(feature, call)

    def _attempt(self, feature: str, call: Call) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # wandb.teardown can leave by sys.exit
            self._failed.add(feature)
            if not self._is_off:
                self._is_off = feature in self._vital
                what = f"off from here on, {feature}" if self._is_off else feature
                log.warning(f"{self._name}: {what} failed ({reason(error)}); {NOT_AFFECTED}")


def reason(error: BaseException) -> str:
    """Return what an error says as one line of at most 200 characters, or its type."""
    return " ".join(str(error).split())[:200] or type(error).__name__
