"""One search, shared by any number of workers, each of which may die at any instant.

Every trial is claimed twice: by the worker that asked for it and by the job that runs it, both
through locks that the kernel frees. A running trial whose two claims are free is taken up again,
with the same number, in the same folder, from its checkpoint. `attempt` counts its starts: a job of
an earlier start that wakes up late finds another number and leaves.
"""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from llmexp.errors import RequestError
from llmexp.sweep import methods, storage
from llmexp.sweep.live import settle
from llmexp.sweep.locks import Lock, held
from llmexp.sweep.space import Space

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class Claim:
    """One start of one trial."""

    number: int
    attempt: int
    params: dict[str, Any]
    point: dict[str, Any]  # what an enqueued trial was given beyond its parameters


class Study:
    """A worker's view of the search; a context, since it holds the worker's claim."""

    def __init__(
        self,
        name: str,
        space: Space,
        *,
        folder: Path,  # of the sweep, absolute; the claims are files in <folder>/.study
        address: str,  # of the storage, see storage.locate
        n_trials: float,
        sampler: methods.Config | None,  # None: only the enqueued points
        pruner: methods.Config,
        seed: int | None,
    ) -> None:
        self.name, self.space, self.n_trials = name, space, n_trials
        self.address = address
        self._sampler, self._pruner, self._seed = sampler, pruner, seed
        self._claims = folder / ".study"
        self._lock = Lock(self._claims / f"{name}.lock")
        self._worker = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        self._claim = Lock(self._worker_file(self._worker))

    def __enter__(self) -> "Study":
        if not self._claim.acquire():
            raise RequestError(f"{self._claim.path} is locked")
        with self._lock:
            if "://" not in self.address and self._alone():
                self.mended = storage.repair(Path(self.address))
            self._storage = storage.connect(self.address)
            self.optuna = optuna.create_study(
                study_name=self.name,
                storage=self._storage,
                direction="minimize",
                load_if_exists=True,
                sampler=RandomSampler(),
                pruner=methods.build_pruner(self._pruner, self.n_trials),
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._claim.release()
        if not any(t.user_attrs.get("worker") == self._worker for t in self._running()):
            self._claim.path.unlink(missing_ok=True)

    mended = 0  # bytes of a torn journal that were set aside

    def agree(self, fingerprint: dict[str, Any], *, allow_mismatch: bool) -> None:
        """Refuse to continue what was begun with another space, metric or config."""
        with self._lock:
            begun = self.optuna.user_attrs.get(FINGERPRINT, fingerprint)
            different = [
                f"  {key}: was {begun.get(key)}, is {fingerprint.get(key)}"
                for key in sorted({*begun, *fingerprint})
                if begun.get(key) != fingerprint.get(key)
            ]
            if different and not allow_mismatch:
                raise RequestError(
                    f"Study {self.name} in {storage.public(self.address)} was begun with other "
                    "settings, and its trials could not be compared:\n"
                    + "\n".join(different)
                    + "\n"
                    "Give this search a name of its own (hydra.sweeper.study_name=...), or insist "
                    "with hydra.sweeper.allow_mismatch=true."
                )
            self.optuna.set_user_attr(FINGERPRINT, fingerprint)

    def enqueue(self, points: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        """Ask for these points before all others, each once: (parameters, notes kept with them)."""
        with self._lock:
            known = [trial.user_attrs.get("point") for trial in self.trials()]
            for params, more in points:
                if more not in known:
                    self.optuna.enqueue_trial(params, user_attrs={"point": more})

    def claim(self) -> Claim | None:
        """Return the next start, of a trial that lost its job or a new one; None: all are taken."""
        with self._lock:
            for orphan in self._orphans():
                self._sample_for(orphan.number)
                attempt = orphan.user_attrs.get("attempt", -1) + 1
                return self._start(self._trial(orphan.number), attempt)
            if sum(trial.state in COUNTED for trial in self.trials()) >= self.n_trials:
                return None
            waiting = [trial for trial in self.trials() if trial.state == TrialState.WAITING]
            self._sample_for(waiting[0].number if waiting else len(self.trials()))
            if not waiting and (self._sampler is None or self._exhausted()):
                return None
            return self._start(self.optuna.ask(), 0)

    def _start(self, trial: optuna.trial.Trial, attempt: int) -> Claim:
        """Draw what has no value yet, a kill may have come between, and claim the trial."""
        params = {key: _suggest(trial, key, found) for key, found in self.space.searched.items()}
        trial.set_user_attr("worker", self._worker)
        trial.set_user_attr("attempt", attempt)
        return Claim(trial.number, attempt, params, trial.user_attrs.get("point", {}))

    def _sample_for(self, number: int) -> None:
        if self._sampler is not None:
            self.optuna.sampler = methods.build_sampler(
                self._sampler, self.space, seed=self._seed, number=number
            )

    def release(self, claim: Claim) -> None:
        """Give a trial back whose job was stopped: the next worker continues it."""
        self._trial(claim.number).set_user_attr("worker", None)

    def lost(self, claim: Claim) -> int:
        """Give a trial back whose job died; return how often that happened to it."""
        trial = self._trial(claim.number)
        times = int(trial.user_attrs.get("lost", 0)) + 1
        trial.set_user_attr("lost", times)
        self.release(claim)
        return times

    def tell(self, claim: Claim, state: str, error: str) -> None:
        """Tell the end of a trial whose job could not do it."""
        trial = self._trial(claim.number)
        trial.set_user_attr("error", error)
        settle(self.optuna, trial, state)

    def note(self, claim: Claim, name: str, value: object) -> None:
        """Keep a fact about a running trial."""
        self._trial(claim.number).set_user_attr(name, value)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials by number, those of other workers included."""
        return list(self.optuna.get_trials(deepcopy=False))

    def trial(self, number: int) -> FrozenTrial:
        """Return a trial as it stands now."""
        return self.trials()[number]

    def adopted(self) -> list[FrozenTrial]:
        """Return the running trials whose worker is dead while their job lives on."""
        return [t for t in self._running() if self._dead(t) and held(self.lock_file(t.number))]

    def lock_file(self, number: int) -> Path:
        """Return the file that the job of a trial keeps locked."""
        return self._claims / f"{self.name}-{number:05d}.lock"

    def _orphans(self) -> Iterator[FrozenTrial]:
        for trial in self._running():
            if self._dead(trial) and not held(self.lock_file(trial.number)):
                yield trial

    def _dead(self, trial: FrozenTrial) -> bool:
        """Say whether nobody waits for a trial.

        A worker whose file is not here has another sweep folder, on another machine maybe: it is
        not ours to judge.
        """
        worker = trial.user_attrs.get("worker")
        file = self._worker_file(str(worker))
        return worker is None or (file.exists() and not held(file))

    def _alone(self) -> bool:
        """Say whether no other worker and no job of this sweep lives."""
        files = set(self._claims.glob("*.lock")) - {self._lock.path, self._claim.path}
        return not any(held(file) for file in files)

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    def _exhausted(self) -> bool:
        sampler = self.optuna.sampler
        return isinstance(sampler, optuna.samplers.GridSampler) and sampler.is_exhausted(
            self.optuna
        )

    def _trial(self, number: int) -> optuna.trial.Trial:
        study = self._storage.get_study_id_from_name(self.name)
        return optuna.trial.Trial(
            self.optuna, self._storage.get_trial_id_from_study_id_trial_number(study, number)
        )

    def _worker_file(self, worker: str) -> Path:
        return self._claims / f"worker-{worker}.lock"


def _suggest(trial: optuna.trial.Trial, key: str, distribution: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(key, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(
        key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
    )
