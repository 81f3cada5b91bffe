"""python -m llmexp.train: compose the config, build the parts, print the plan, train.

Nothing heavy is imported at the top: --help, --cfg and TAB stay quick.
"""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmexp import heap

if heap.may_begin_anew():  # before all that would have to be imported once more
    heap.begin_anew()

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from llmexp import request, startup
from llmexp.command import command
from llmexp.errors import RequestError, RunError
from llmexp.sweep.plugin import register

if TYPE_CHECKING:
    from llmexp.run import Trial


def main() -> None:
    """Check the command line, let Hydra compose and run it; see llmexp/errors.py for the exit
    codes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning from forked processes
    os.environ["HYDRA_FULL_ERROR"] = (
        "1"  # errors reach us; we tell them in words, with the right exit code
    )
    command(_main)


def _main() -> None:
    logging.getLogger("llmexp").propagate = False  # the console shows it, Hydra need not again
    register()
    with startup.uncollected():
        sys.argv[1:] = request.prepare(sys.argv[1:])
    try:
        _hydra_main()
    except (HydraException, OmegaConfBaseException) as problem:
        raise RequestError(str(problem)) from None
    except OSError as problem:
        if any(frame.name == "_train" for frame in traceback.extract_tb(problem.__traceback__)):
            raise  # else it is Hydra that could not print, or make the run folder
        if problem.filename is None:
            raise RequestError(f"cannot write what was asked for: {problem.strerror}") from None
        raise RequestError(
            f"cannot make the run folder {problem.filename}: {problem.strerror}. Choose another "
            "with run.name=..."
        ) from None


@hydra.main(config_path=str(request.CONF), config_name="train", version_base="1.3")
def _hydra_main(composed: DictConfig) -> float:
    """Run one job: the best validation loss in nats per token, which a sweep minimises."""
    from llmexp.sweep.trial import run_trial

    job = HydraConfig.get()
    try:
        return run_trial(
            lambda trial: _train(
                composed, shown(Path(job.runtime.output_dir)), list(job.overrides.task), trial
            )
        )
    except (RequestError, RunError) as problem:
        if job.mode == RunMode.MULTIRUN:  # the sweep goes on with the next job
            raise
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)


def _train(composed: DictConfig, folder: Path, overrides: list[str], trial: "Trial") -> float:
    from llmexp import config

    settings = request.resolved(composed)
    config.check(settings)
    train = _trainer(settings)
    return train(settings, folder, overrides, trial)


def _trainer(settings: dict[str, Any]) -> "Callable[..., float]":
    """Import the engine and all that it needs, once; on a CPU its memory is fetched meanwhile."""
    if "llmexp.job" not in sys.modules:
        heap.touch(startup.bytes_of_state(settings))
        with startup.uncollected():
            startup.import_transformers()
            importlib.import_module("llmexp.job")
    from llmexp.job import train

    return train


def shown(folder: Path) -> Path:
    """Return the folder as a person would type it here."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


if __name__ == "__main__":
    main()
