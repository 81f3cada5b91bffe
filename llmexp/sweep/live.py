"""The trial of a running sweep, as seen by its job."""

import contextlib
import logging
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from llmexp.errors import LockedError, RequestError
from llmexp.sweep import methods, storage
from llmexp.sweep.locks import Lock, owner
from llmexp.sweep.trial import NullTrial

log = logging.getLogger("llmexp")
TELLS = {
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "infeasible": TrialState.PRUNED,
    "refused": TrialState.FAIL,
    "failed": TrialState.FAIL,
}


class Trial(NullTrial):
    """One trial, claimed by its lock as long as the block lasts.

    Raises LockedError if it belongs to another job by now, e.g. because this one waited in a queue
    while its sweeper died and the trial was started again.
    """

    study: str
    number: int

    def __init__(self, spec: dict[str, Any]) -> None:
        self.study, self.number = spec["study"], spec["number"]
        self._attempt = spec["attempt"]
        self._lock = Lock(Path(spec["lock"]))
        self._storage = storage.connect(spec["storage"] or os.environ[storage.ENV_STORAGE])
        self._study = optuna.load_study(
            study_name=self.study,
            storage=self._storage,
            sampler=RandomSampler(),  # proposes nothing here
            pruner=methods.build_pruner(spec["pruner"], spec["n_trials"]),
        )
        self._id = self._storage.get_trial_id_from_study_id_trial_number(
            self._storage.get_study_id_from_name(self.study), self.number
        )
        self._trial = optuna.trial.Trial(self._study, self._id)

    def __enter__(self) -> "Trial":
        if not self._lock.acquire(seconds=2.0):  # a sweeper may be probing it just now
            raise self._taken(f"pid and host {owner(self._lock.path)} run it")
        trial = self._frozen()
        if trial.state != TrialState.RUNNING or trial.user_attrs["attempt"] != self._attempt:
            self._lock.release()
            raise self._taken(f"it is {trial.state.name.lower()}, attempt {self._attempt} is over")
        self.params = trial.params
        self.fate = trial.user_attrs.get("fate")
        self._trial.set_user_attr("gpu", os.environ.get("CUDA_VISIBLE_DEVICES"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()

    def report(self, index: int, loss: float) -> bool:
        """Tell the loss of validation `index`, in nats per token; True means: stop here.

        A storage that does not answer costs no training: the run goes on without it.
        """
        try:
            if not math.isfinite(loss):
                self._decide("infeasible")
            elif index not in self._frozen().intermediate_values:  # a resumed run reports again
                self._trial.report(loss, index)
            if self.fate is None and self._trial.should_prune():
                self._decide("pruned")
        except Exception as error:
            log.warning("sweep: validation %d could not be reported: %s", index, error)
        return self.fate is not None

    def set(self, name: str, value: object) -> None:
        """Keep a fact about the run with the study."""
        with contextlib.suppress(Exception):
            self._trial.set_user_attr(name, value)

    def tell(
        self, state: str, *, loss: float | None = None, error: BaseException | None = None
    ) -> None:
        """Tell the study how the trial ended; one that was stopped stays open, to be continued."""
        if state == "stopped":
            return
        if error is not None:
            self._trial.set_user_attr("error", f"{type(error).__name__}: {error}"[:1000])
        settle(self._study, self._trial, state, loss)

    def _decide(self, fate: str) -> None:
        self.fate = fate
        self._trial.set_user_attr("fate", fate)

    def _frozen(self) -> optuna.trial.FrozenTrial:
        return self._storage.get_trial(self._id)

    def _taken(self, why: str) -> RequestError:
        return LockedError(f"Trial {self.number} of study {self.study} is not this job's: {why}.")


def settle(
    study: optuna.Study, trial: optuna.trial.Trial, state: str, loss: float | None = None
) -> None:
    """Tell one end of a trial; told twice, the first one stands.

    An infeasible point is told as pruned, with a constraint: samplers ignore failed trials, and
    would propose the same again and again.
    """
    trial.set_user_attr("state", state)
    if state == "infeasible":
        trial.set_constraint("feasible", 1.0)
    study.tell(
        trial, loss if state == "finished" else None, state=TELLS[state], skip_if_finished=True
    )
