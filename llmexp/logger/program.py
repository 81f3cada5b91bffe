"""What a library may see of the running program, and must not change."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from llmexp.logger.redact import redact_argv


@contextmanager
def shielded() -> Iterator[None]:
    """Hide the secrets of sys.argv for the length of a block, and undo what it does to exits.

    wandb wraps sys.exit and sys.excepthook to learn an exit code that it is told anyway. Wrapped
    again by the next run of a multirun, a crash would print its traceback once for every run.
    """
    kept = sys.argv, sys.exit, sys.excepthook
    sys.argv = redact_argv(sys.argv)
    try:
        yield
    finally:
        sys.argv, sys.exit, sys.excepthook = kept
