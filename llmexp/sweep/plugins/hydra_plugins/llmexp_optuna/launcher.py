"""The launcher hydra/launcher=process: a fresh process per job. Thin; see llmexp/sweep/."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from llmexp.errors import RequestError, RunError

if TYPE_CHECKING:
    from llmexp.sweep.launch import Ended
    from llmexp.sweep.process import Processes


class ProcessLauncher(Launcher):
    """Starts each job as a command; conf/hydra/launcher/process.yaml explains the arguments."""

    def __init__(
        self,
        n_jobs: int | None,
        gpus: Any,
        timeout: float | None,
        grace: float,
        command_prefix: list[str],
    ) -> None:
        self.n_jobs, self.gpus = n_jobs, gpus
        self.timeout, self.grace = timeout, grace
        self.command_prefix = [str(word) for word in command_prefix]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over; the task itself is started by its command line."""
        self.config, self.context = config, hydra_context

    def slots(self) -> "Processes":
        """Return the slots, for a sweeper that refills them as soon as a job ends."""
        from llmexp.sweep.process import Processes, slots
        from llmexp.sweep.program import job_command

        return Processes(
            job_command(self.config, self.command_prefix),
            slots=slots(
                self.n_jobs,
                self.gpus if isinstance(self.gpus, str) else self.gpus and list(self.gpus),
            ),
            timeout=self.timeout,
            grace=self.grace,
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a list of jobs, for other sweepers; what a job found stays in its folder."""
        from llmexp.sweep.launch import Job
        from llmexp.sweep.program import refuse_torchrun, speak

        speak()
        refuse_torchrun()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        returns, jobs = [], []
        for index, overrides in enumerate(job_overrides):
            returned = self._composed(list(overrides), initial_job_idx + index)
            folder = Path(str(returned.working_dir))
            returns.append(returned)
            jobs.append(Job(initial_job_idx + index, filter_overrides(overrides), folder))
        for ended in self.slots().run(jobs):
            returned = returns[ended.job.number - initial_job_idx]
            returned.status = JobStatus.FAILED if ended.code else JobStatus.COMPLETED
            returned.return_value = _error(ended) if ended.code else None
        return returns

    def _composed(self, overrides: list[str], number: int) -> JobReturn:
        """Return what the caller may want to know of a job, its end left open."""
        composed = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(composed):
            composed.hydra.job.id, composed.hydra.job.num = str(number), number
        sweep = composed.hydra.sweep
        config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        return JobReturn(
            overrides=overrides,
            cfg=config,
            hydra_cfg=OmegaConf.masked_copy(composed, ["hydra"]),
            working_dir=str(Path(str(sweep.dir)).absolute() / str(sweep.subdir)),
            task_name=str(composed.hydra.job.name),
        )


def _error(ended: "Ended") -> Exception:
    told = f"Job {ended.job.number} ended with exit code {ended.code}: {ended.error}"
    told += f"\nIts log: {ended.job.log}"
    return RequestError(told) if ended.code == RequestError.exit_code else RunError(told)
