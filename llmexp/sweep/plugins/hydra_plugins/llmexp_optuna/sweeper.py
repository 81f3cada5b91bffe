"""The sweeper hydra/sweeper=optuna. Thin: Hydra imports it at every start; see llmexp/sweep/."""

import errno
import sys
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf

from llmexp.errors import RequestError, RunError

# what is the user's to mend, not ours
DISK = (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)


class OptunaSweeper(Sweeper):
    """Searches with Optuna; every argument is explained in conf/hydra/sweeper/optuna.yaml."""

    def __init__(
        self,
        study_name: str,
        storage: str | None,
        n_trials: int,
        n_jobs: int,
        seed: int | None,
        params: DictConfig,
        confirm: int,
        max_failures: int,
        max_retries: int,
        allow_mismatch: bool,
        restart: ListConfig,
        check: str | None,
        sampler: DictConfig,
        pruner: DictConfig,
    ) -> None:
        from llmexp.sweep.search import Settings

        self.settings = Settings(
            study_name=study_name,
            storage=storage,
            n_trials=n_trials,
            n_jobs=n_jobs,
            seed=seed,
            params=plain(params),
            confirm=confirm,
            max_failures=max_failures,
            max_retries=max_retries,
            allow_mismatch=allow_mismatch,
            restart=plain(restart),
            check=check,
            sampler=plain(sampler),
            pruner=plain(pruner),
        )

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over, and build the launcher."""
        self.composed, self.context = config, hydra_context
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> float | None:
        """Search, report, and return the best loss; end the process as llmexp/errors.py says."""
        configure_log(self.composed.hydra.hydra_logging, self.composed.hydra.verbose)
        try:
            return self._sweep(arguments)
        except (RequestError, RunError) as problem:
            print(f"error: {problem}", file=sys.stderr)
            sys.exit(problem.exit_code)
        except OSError as problem:
            if problem.errno not in DISK:
                raise
            print(f"error: the sweep cannot be written: {problem}", file=sys.stderr)
            sys.exit(RunError.exit_code)

    def _sweep(self, arguments: list[str]) -> float | None:
        from llmexp.sweep.compose import Composer
        from llmexp.sweep.launch import Batches
        from llmexp.sweep.program import refuse_torchrun, speak
        from llmexp.sweep.search import Search

        speak()
        refuse_torchrun()
        composer = Composer(self.composed, self.context.config_loader, self.settings.check)
        slots = getattr(self.launcher, "slots", None)
        batches = Batches(self.launcher.launch, self.settings.n_jobs, composer.sweep_dir)
        return Search(
            self.settings, composer, arguments=arguments, launch=slots() if slots else batches
        ).run()


def plain(value: Any) -> Any:
    """Return a config node as dicts and lists."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
