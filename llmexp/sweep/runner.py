"""The loop of one worker: claim, run, look how it ended, go on; then say what was found."""

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable

from optuna.trial import FrozenTrial, TrialState

from llmexp.errors import LockedError, RequestError, RunError
from llmexp.signals import Stop
from llmexp.sweep.launch import Ended, Job, Launch
from llmexp.sweep.locks import held, owner
from llmexp.sweep.outcome import describe
from llmexp.sweep.process import Processes, signal_group
from llmexp.sweep.study import Claim, Study
from llmexp.sweep.trial import NO_ROOM, STOPPED

log = logging.getLogger("llmexp.sweep")
LOOK = 1.0  # seconds between two looks at what other processes do


class Runner:
    """Runs the trials of a study until there are enough of them."""

    def __init__(
        self,
        study: Study,
        launch: Launch,
        *,
        job_of: Callable[[Claim], Job],
        max_failures: int,  # in a row, before the sweep gives up
        max_retries: int,  # of a trial whose job was killed
        trial_done: Callable[[], None],  # called after each
    ) -> None:
        self._study, self._launch, self._job_of = study, launch, job_of
        self._max_failures, self._max_retries = max_failures, max_retries
        self._trial_done = trial_done
        self._open: dict[int, tuple[Claim, Job]] = {}
        self._failures = 0

    def run(self) -> None:
        """Run trials until all are done, taking up those that lost their job or their sweeper.

        Raises RunError after too many failures in a row, RequestError if a job says that it cannot
        be done. A signal stops the jobs, which save themselves, and ends the process with its exit
        code.
        """
        ours = isinstance(self._launch, Processes)  # other launchers stop their jobs themselves
        with Stop() if ours else contextlib.nullcontext(Stop()) as stop:
            try:
                while self._step():
                    if stop.requested:
                        raise SystemExit(stop.requested)
            finally:
                self._launch.stop()
                for _, job in list(self._open.values()):
                    self._settle(Ended(job, -signal.SIGTERM), stopping=True)
                if stop.requested:
                    self._stop_adopted()

    def _step(self) -> bool:
        """Fill the slots and wait a little; say whether anything is left to wait for."""
        adopted = self._study.adopted()
        if isinstance(self._launch, Processes):
            here = [t for t in adopted if owner(self._study.lock_file(t.number))[1] == HOST]
            self._launch.adopted = [t.user_attrs.get("gpu") for t in here]
        while self._launch.free() > 0 and (claim := self._study.claim()) is not None:
            job = self._job_of(claim)
            self._open[claim.number] = claim, job
            again = f" (start {claim.attempt + 1})" if claim.attempt else ""
            point = [*map(_shown, claim.params.items()), *claim.point.get("overrides", [])]
            log.info("trial %d%s: %s", claim.number, again, " ".join(point))
            self._launch.submit(job)
        if not self._launch.busy():
            if adopted:
                time.sleep(LOOK)
            return bool(adopted)
        for ended in self._launch.wait(LOOK):
            self._settle(ended, stopping=False)
        return True

    def _settle(self, ended: Ended, *, stopping: bool) -> None:
        """Read in the study how a job ended, or tell it, and decide whether the sweep goes on."""
        claim, _ = self._open.pop(ended.job.number)
        trial = self._study.trial(claim.number)
        if trial.state == TrialState.RUNNING:
            if held(self._study.lock_file(claim.number)):
                self._study.release(claim)  # an earlier start of it lives, and will tell
                return
            self._tell_for(claim, ended, stopping=stopping)
            trial = self._study.trial(claim.number)
        if trial.state == TrialState.RUNNING:
            return
        log.info("trial %d %s", claim.number, describe(trial))
        self._trial_done()
        self._failures = self._failures + 1 if trial.state == TrialState.FAIL else 0
        if not stopping:
            self._give_up(ended, trial)

    def _tell_for(self, claim: Claim, ended: Ended, *, stopping: bool) -> None:
        """Tell the study what a job could not tell itself."""
        reason = f"{ended.error} (exit code {ended.code})".strip()
        if ended.timed_out:
            self._study.tell(claim, "infeasible", "it took longer than hydra.launcher.timeout")
        elif stopping:
            self._study.release(claim)
        elif ended.code == RequestError.exit_code:
            self._study.tell(claim, "refused", reason)
        elif ended.code < 0 or ended.code in (*STOPPED, 137, LockedError.exit_code):
            if self._study.lost(claim) > self._max_retries:
                self._study.tell(claim, "failed", f"killed {self._max_retries + 1} times: {reason}")
            else:
                log.warning("trial %d lost its job: %s; it is started again", claim.number, reason)
        elif ended.code == 0:
            told = "the job ended well and told nothing: its task must return run_trial(...)"
            self._study.tell(claim, "failed", told)
        else:
            self._study.tell(claim, "failed", reason)

    def _give_up(self, ended: Ended, trial: FrozenTrial) -> None:
        error = trial.user_attrs.get("error", "")
        if trial.user_attrs.get("state") == "refused" or self._nothing_fits(error):
            raise RequestError(f"Trial {trial.number} was refused: {error}\n{_where(ended.job)}")
        if self._failures >= self._max_failures:
            raise RunError(
                f"{self._failures} trials failed in a row, the last of them with: {error}\n"
                f"{_where(ended.job)}"
            )

    def _nothing_fits(self, error: str) -> bool:
        """Say whether the plan of a trial takes too much memory, and no other trial came further.

        The config's own values come first. Where they do not fit, a smaller model helps, and a
        search does not; where they do, this is one point of the space that is too large.
        """
        trials = self._study.trials()
        return bool(NO_ROOM.search(error)) and not any(t.intermediate_values for t in trials)

    def _stop_adopted(self) -> None:
        """Stop what a killed sweeper left on this machine: who stops a sweep wants the GPU back."""
        for trial in self._study.adopted():
            pid, host = owner(self._study.lock_file(trial.number))
            if host == HOST and pid != os.getpid():
                signal_group(os.getpgid(pid), signal.SIGTERM)


HOST = socket.gethostname()


def _where(job: Job) -> str:
    """Say where to look; launchers of Hydra keep logs elsewhere."""
    return f"Its log: {job.log}" if job.log.exists() else f"Its folder: {job.folder}"


def _shown(item: tuple[str, object]) -> str:
    key, value = item
    return f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
