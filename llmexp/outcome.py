"""How a run ended: a word in its folder, written by the run itself.

A killed run leaves none, and one that goes on takes that of its last end away. So where there is
none, the run is under way or was killed: its lock says which.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmexp import durable
from llmexp.logger.redact import redact
from llmexp.sweep.trial import verdict

FILE = ".outcome"  # in a run folder
FINISHED, EARLY, PRUNED = "finished", "stopped early", "pruned"
STOPPED, FAILED = "stopped by a signal", "failed"
DONE = (FINISHED, EARLY, PRUNED)  # nothing is left to do
OF = {None: FINISHED, "patience": EARLY, "pruned": PRUNED, "signal": STOPPED}  # State.stopped


def write(folder: Path, stopped: str | None, step: int) -> None:
    """Write how a run came to its end at `step`. Raises OSError."""
    durable.write_json(folder / FILE, {"outcome": OF[stopped], "step": step})


def read(folder: Path) -> dict[str, Any]:
    """Return what a run says of its end, nothing where it says nothing that can be read."""
    try:
        found = json.loads((folder / FILE).read_bytes())
        return dict(found) if found["outcome"] in (*DONE, STOPPED, FAILED) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


@contextlib.contextmanager
def told_if_failed(folder: Path) -> Iterator[None]:
    """Inside the block: the run goes on, so that of its last end is no more; an error is told."""
    durable.discard(folder / FILE)
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            if not (folder / FILE).exists():  # else it had come to its end before
                durable.write_json(folder / FILE, _of(error))
        raise


def _of(error: BaseException) -> dict[str, str]:
    if verdict(error) == "stopped":
        return {"outcome": STOPPED}
    kind, text = type(error), str(error).strip()
    said = [text] if kind.__module__ == "llmexp.errors" else [kind.__name__, *[text] * bool(text)]
    return {"outcome": FAILED, "error": str(redact(": ".join(said).partition("\n")[0]))}
