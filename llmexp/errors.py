"""How a command ends: which exit code, and whether a person sees a traceback.

* RequestError   2  the request was wrong: config, data, a missing model
  x LockedError  3  the run folder belongs to a live process
* RunError       1  the run could not go on, for a reason that can be told in words

Anything else is a mistake of ours: exit 1, with its traceback.
"""


class RequestError(Exception):
    """What the user asked for cannot be done; the message says the law, the values and the cure."""

    exit_code = 2


class LockedError(RequestError):
    """Another live process works in this run folder."""

    exit_code = 3


class RunError(Exception):
    """A run that started and cannot go on; the message says why and what to try."""

    exit_code = 1
