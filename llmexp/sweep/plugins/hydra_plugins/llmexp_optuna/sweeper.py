"""The sweeper: hydra/sweeper=optuna. Thin, since Hydra imports it at every start; see llmexp/sweep/."""

import logging
import os
import sys
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from llmexp.errors import RequestError, RunError

log = logging.getLogger("llmexp")


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
        restart: list[str],
        check: str | None,
        sampler: DictConfig,
        pruner: DictConfig,
    ) -> None:
        given = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        self.settings = {name: plain(value) for name, value in given.items()}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over, and build the launcher."""
        self.config, self.context = config, hydra_context
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> float | None:
        """Search, report, and return the best loss; end the process as llmexp/errors.py says."""
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        try:
            return self._sweep(arguments)
        except (RequestError, RunError) as problem:
            print(f"error: {problem}", file=sys.stderr)
            sys.exit(problem.exit_code)

    def _sweep(self, arguments: list[str]) -> float | None:
        refuse_torchrun()
        from llmexp.sweep.compose import Composer
        from llmexp.sweep.launch import Batches
        from llmexp.sweep.search import Search, Settings

        settings = Settings(**self.settings)
        composer = Composer(self.config, self.context.config_loader, settings.check)
        slots = getattr(self.launcher, "slots", None)
        batches = Batches(self.launcher.launch, settings.n_jobs, composer.sweep_dir)
        return Search(
            settings, composer, arguments=arguments, launch=slots() if slots else batches
        ).run()


def plain(value: Any) -> Any:
    """Return a config node as dicts and lists."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def refuse_torchrun() -> None:
    """Refuse to start one sweep per rank."""
    if "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        raise RequestError(
            "torchrun with -m would start a sweep in each of its processes. Start one sweep, without torchrun, "
            "and put torchrun in front of each job: "
            "'hydra.launcher.command_prefix=[torchrun,--standalone,--nproc_per_node=2,--no-python]'"
        )
