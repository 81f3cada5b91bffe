"""What a training run sees of a sweep; outside of one: nothing, at no cost.

Light on purpose: this module imports neither Hydra nor Optuna; llmexp/sweep/live.py does, in a
sweep.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from llmexp.errors import LockedError, RequestError, RunError

ENV = "LLMEXP_TRIAL"
STOPPED = (129, 130, 143)  # exit codes of a run that a signal stopped, and that can be continued
INFEASIBLE = {"OutOfMemoryError", "MemoryError", "FloatingPointError"}
SIGNS = ("out of memory", "was not finite", "loss scale collapsed")  # llmexp/health.py says so
NO_ROOM = re.compile(r"does not fit [\d.]+ GiB")  # llmexp/memory/planner.py says so
NO_LOSS = "the task returned None, where a sweep needs the loss to minimize"
Loss = TypeVar("Loss", bound=float | None)


class NullTrial:
    """The trial of a run that is not part of a sweep: never pruned, tells nobody."""

    study: str | None = None
    number: int | None = None
    params: Mapping[str, Any] = {}
    fate: str | None = None  # pruned or infeasible, once a report decided so

    def report(self, index: int, loss: float) -> bool:
        """Tell the loss of validation `index`, in nats per token; True means: stop here."""
        return False

    def set(self, name: str, value: object) -> None:
        """Keep a fact about the run with the study, e.g. set("memory/peak_gib", 5.2)."""


_current = NullTrial()


def current() -> NullTrial:
    """Return the trial that this process is running."""
    return _current


def run_trial(train: Callable[[NullTrial], Loss]) -> Loss | float:
    """Run `train` as the trial that a sweep asked for, and tell the study at once how it ended.

    A run that does not fit into memory or diverges is a finding, not a mistake: it is told as
    infeasible, and inf is returned. Whatever else `train` raises is told, and raised again.
    """
    global _current
    if not os.environ.get(ENV) or os.environ.get("RANK", "0") != "0":
        return train(NullTrial())
    from llmexp.sweep.live import Trial

    with Trial(unpack(os.environ[ENV])) as trial:
        _current = trial
        try:
            loss = train(trial)
        except BaseException as error:
            trial.tell(verdict(error), error=error)
            if verdict(error) == "infeasible":
                return math.inf
            raise
        finally:
            _current = NullTrial()
        if loss is None and trial.fate is None:
            trial.tell("failed", error=RunError(NO_LOSS))
        else:
            trial.tell(trial.fate or verdict(loss=loss), loss=loss)
        return loss


def verdict(error: BaseException | None = None, *, loss: float | None = None) -> str:
    """Name how a run ended: finished, infeasible, refused, stopped (to be continued) or failed."""
    if error is None:
        return "finished" if loss is not None and math.isfinite(loss) else "infeasible"
    if isinstance(error, KeyboardInterrupt | LockedError):
        return "stopped"
    if isinstance(error, SystemExit):
        return "stopped" if error.code in STOPPED else "refused" if error.code == 2 else "failed"
    if isinstance(error, RequestError):
        return "infeasible" if NO_ROOM.search(str(error)) else "refused"
    return "infeasible" if _says_something_of_the_point(error) else "failed"


def _says_something_of_the_point(error: BaseException) -> bool:
    """Say whether memory ran out or the numbers did, here or in what this error came from."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    names = {kind.__name__ for each in chain for kind in type(each).__mro__}
    texts = [str(each).lower() for each in chain]
    return bool(names & INFEASIBLE) or any(sign in each for sign in SIGNS for each in texts)


def end_in_words(trial: Any, plain: str, error: BaseException | None = None) -> str:
    """Return how the run of a trial ended, as the table of the sweep calls it; else `plain`."""
    if trial.number is None:
        return plain
    return str(verdict(error) if error is not None else trial.fate or plain)


def tags(trial: Any) -> list[str]:
    """Return what a logger can sort the runs of a sweep by: number and point."""
    if trial.number is None:
        return []
    point = [
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in trial.params.items()
    ]
    return [f"trial {trial.number}", *point]


def pack(spec: Mapping[str, Any]) -> str:
    """Write what a job has to know as one word that no shell, Hydra or OmegaConf will touch."""
    return quote(json.dumps(spec), safe="")


def unpack(word: str) -> dict[str, Any]:
    """Undo `pack`."""
    spec: dict[str, Any] = json.loads(unquote(word))
    return spec
