"""How trials are run: what the runner hands out, and what it gets back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException


@dataclass(frozen=True)
class Job:
    """One process to run: a command line, a folder, and what the environment adds."""

    number: int
    overrides: Sequence[str]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Return the file that holds what the job printed."""
        return self.folder / "job.log"


@dataclass(frozen=True)
class Ended:
    """How a job ended, whatever it told the study."""

    job: Job
    code: int  # exit code, or minus the number of the signal that killed it
    error: str = ""
    timed_out: bool = False


class Launch(Protocol):
    """Runs jobs."""

    def free(self) -> int:
        """Return how many jobs can be taken now."""

    def busy(self) -> int:
        """Return how many jobs have not ended yet."""

    def submit(self, job: Job) -> None:
        """Take a job."""

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that ended, after so many seconds at the latest if it can."""

    def stop(self) -> None:
        """End what still runs."""


class Batches:
    """Any launcher of Hydra: runs up to `size` jobs together, and returns with the last of them."""

    def __init__(
        self, launch: Callable[[list[list[str]], int], Any], size: int, sweep_dir: Path
    ) -> None:
        self._launch, self._size, self._sweep_dir = launch, size, sweep_dir
        self._jobs: list[Job] = []

    def free(self) -> int:
        """Return how many jobs the next batch still takes."""
        return self._size - len(self._jobs)

    def busy(self) -> int:
        """Return how many jobs wait for their batch."""
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        """Put a job into the next batch."""
        self._jobs.append(job)

    def wait(self, seconds: float) -> list[Ended]:
        """Run the batch. A launcher that breaks takes all of it down; the study knows the rest."""
        jobs, self._jobs = self._jobs, []
        if not jobs:
            return []
        try:
            returns = self._launch([self._words(job) for job in jobs], jobs[0].number)
        except (HydraException, OmegaConfBaseException) as error:
            return [Ended(job, 1, f"{type(error).__name__}: {error}") for job in jobs]
        except Exception as error:  # a worker was killed, and the others with it
            return [Ended(job, -9, f"{type(error).__name__}: {error}") for job in jobs]
        return [self._ended(job, each) for job, each in zip(jobs, returns, strict=True)]

    def stop(self) -> None:
        """Nothing runs between two batches."""

    def _words(self, job: Job) -> list[str]:
        subdir = job.folder.relative_to(self._sweep_dir)
        named = {f"hydra.job.env_set.{key}": value for key, value in job.environment.items()}
        named["hydra.sweep.subdir"] = str(subdir)
        return [*job.overrides, *(f"{key}={quote(value)}" for key, value in named.items())]

    @staticmethod
    def _ended(job: Job, returned: Any) -> Ended:
        try:
            _ = returned.return_value
        except Exception as error:
            return Ended(job, 1, f"{type(error).__name__}: {error}")
        return Ended(job, 0)


def quote(value: str) -> str:
    """Write any string as a quoted value of Hydra's grammar that means just itself."""
    return str(QuotedString(value.replace("${", "\\${"), Quote.single).with_quotes())
