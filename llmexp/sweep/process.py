"""A fresh process per job: its own memory, the GPU of its slot, a death that hurts no other."""

import logging
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from llmexp.errors import RequestError
from llmexp.signals import Stop
from llmexp.sweep.launch import Ended, Job, quote

log = logging.getLogger("llmexp.sweep")
GPU = "CUDA_VISIBLE_DEVICES"
POLL = 0.05  # seconds between two looks at the children


@dataclass
class _Running:
    job: Job
    slot: int
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    started: float
    timed_out: bool = False


class Processes:
    """Runs each job as a process of its own, in a session of its own, in one of some slots."""

    def __init__(
        self,
        command: list[str],  # what comes before the overrides
        *,
        slots: list[dict[str, str]],  # what the environment of each slot adds
        timeout: float | None,  # seconds a job may take
        grace: float,  # seconds between SIGTERM and SIGKILL: the time to save a checkpoint
    ) -> None:
        self._command, self._slots = command, slots
        self._timeout, self._grace = timeout, grace
        self._running: list[_Running] = []
        self.adopted: list[str | None] = []  # the GPUs of jobs whose sweeper died before us

    def run(self, jobs: Sequence[Job]) -> list[Ended]:
        """Run jobs until all have ended; a signal stops them and ends this process."""
        waiting, ended = list(jobs), list[Ended]()
        with Stop() as stop:
            try:
                while waiting or self._running:
                    while waiting and self.free():
                        log.info("\t#%d : %s", waiting[0].number, " ".join(waiting[0].overrides))
                        self.submit(waiting.pop(0))
                    ended += self.wait(1.0)
                    if stop.requested:
                        raise SystemExit(stop.requested)
            finally:
                self.stop()
        return ended

    def free(self) -> int:
        """Return how many slots are free."""
        return len(self._free_slots())

    def busy(self) -> int:
        """Return how many jobs are running."""
        return len(self._running)

    def submit(self, job: Job) -> None:
        """Start a job in a free slot."""
        slot = self._free_slots()[0]
        job.folder.mkdir(parents=True, exist_ok=True)
        place = [f"hydra.run.dir={quote(str(job.folder))}", f"hydra.job.num={job.number}"]
        command = [*self._command, *job.overrides, *place]
        output = job.log.open("ab")
        extra = self._slots[slot]
        words = [*(f"{name}={value}" for name, value in extra.items()), shlex.join(command)]
        output.write(f"$ {' '.join(words)}\n".encode())
        output.flush()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **extra, **job.environment},
                start_new_session=True,  # Ctrl-C reaches the sweeper only, which stops its jobs
            )
        except (FileNotFoundError, PermissionError) as error:
            output.close()
            raise RequestError(
                f"hydra.launcher.command_prefix: {command[0]} cannot be started: {error.strerror}"
            ) from error
        self._running.append(_Running(job, slot, process, output, time.monotonic()))

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that ended, as soon as one did, or after so many seconds."""
        until = time.monotonic() + seconds
        while True:
            ended = [each for each in self._running if self._over(each)]
            if ended or time.monotonic() >= until:
                return [self._finish(each) for each in ended]
            time.sleep(POLL)

    def stop(self) -> None:
        """Ask every job to save and end; kill those that do not within the grace period."""
        for each in self._running:
            signal_group(each.process.pid, signal.SIGTERM)
        until = time.monotonic() + self._grace
        while self._running and time.monotonic() < until:
            self.wait(POLL)
        for each in self._running:
            signal_group(each.process.pid, signal.SIGKILL)
        while self._running:
            self.wait(POLL)

    def _free_slots(self) -> list[int]:
        taken = {each.slot for each in self._running}
        free = [slot for slot in range(len(self._slots)) if slot not in taken]
        for gpu in self.adopted:
            same = [slot for slot in free if self._slots[slot].get(GPU, gpu) == gpu]
            free = [slot for slot in free if slot not in same[:1]]
        return free

    def _over(self, each: _Running) -> bool:
        if each.process.poll() is not None:
            return True
        age = time.monotonic() - each.started
        if self._timeout is not None and age > self._timeout:
            first, each.timed_out = not each.timed_out, True
            if first:
                signal_group(each.process.pid, signal.SIGTERM)
            elif age > self._timeout + self._grace:
                signal_group(each.process.pid, signal.SIGKILL)
        return False

    def _finish(self, each: _Running) -> Ended:
        self._running.remove(each)
        each.output.close()
        signal_group(each.process.pid, signal.SIGKILL)  # what a job left behind in its session
        code = each.process.returncode
        return Ended(each.job, code, last_words(each.job) if code else "", each.timed_out)


def signal_group(leader: int, number: int) -> None:
    """Send a signal to all processes of a session that we started."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        pass
    except PermissionError:  # macOS says so of a group of zombies
        pass


def last_words(job: Job) -> str:
    """Return the last line that a job printed, Hydra's parting advice apart."""
    with job.log.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line and "HYDRA_FULL_ERROR" not in line), "")


def slots(n_jobs: int | None, gpus: str | list[int | str] | None) -> list[dict[str, str]]:
    """Return what the environment of each slot adds: a GPU each, in turn, where there are any.

    `gpus`: auto (those that CUDA_VISIBLE_DEVICES or nvidia-smi names), a list, or null (none).
    """
    found = visible_gpus() if gpus == "auto" else [str(gpu) for gpu in gpus or ()]
    count = n_jobs or max(1, len(found))
    return [{GPU: found[index % len(found)]} if found else {} for index in range(count)]


def visible_gpus() -> list[str]:
    """Return the GPUs that a job could use, without loading CUDA into this process."""
    named = os.environ.get(GPU)
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(gpus))]
