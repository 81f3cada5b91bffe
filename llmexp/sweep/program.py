"""This program as a command line: what starts one of its jobs, and what a person would type."""

import argparse
import logging
import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from llmexp.errors import RequestError

# settings of Hydra that say how a sweep is run, and mean nothing to one of its jobs
OF_THE_SWEEP = (
    "hydra.sweep",
    "hydra/sweeper",
    "hydra.launcher",
    "hydra/launcher",
    "hydra.mode",
    "hydra.run.dir",
)


def program() -> list[str]:
    """Return what a person would type to start this program with its own config."""
    main, *rest = _words()
    if main.endswith(".py") or main == "-m":
        return ["python", main, *rest]
    return [Path(main).name, *rest]  # installed as a command


def job_command(config: DictConfig, prefix: list[str]) -> list[str]:
    """Return what starts a job: a prefix such as torchrun, this program, Hydra's own settings."""
    kept = [
        line for line in own_overrides(config) if not line.lstrip("+~").startswith(OF_THE_SWEEP)
    ]
    return [*prefix, sys.executable, *_words(), *kept]


def _words() -> list[str]:
    """Return what Python was started with, as far as another start needs it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn")
    given = vars(parser.parse_known_args(sys.argv[1:])[0])
    main = sys.modules["__main__"]
    module = main.__spec__.name if main.__spec__ is not None else None
    words = ["-m", module.removesuffix(".__main__")] if module else [str(main.__file__)]
    for flag, value in given.items():
        words += [f"--{flag.replace('_', '-')}", value] if value else []
    return words


def own_overrides(config: DictConfig) -> list[str]:
    """Return what the command line said to Hydra itself, as it was typed."""
    lines = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    assert isinstance(lines, list)
    return [str(line) for line in lines]


def shown(path: Path) -> Path:
    """Return a path as a person would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def refuse_torchrun() -> None:
    """Refuse to start one sweep per rank."""
    if "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        raise RequestError(
            "torchrun with -m would start a sweep in each of its processes. Start one sweep, "
            "without torchrun, and put torchrun in front of each job: "
            "'hydra.launcher.command_prefix=[torchrun,--standalone,--nproc-per-node,2,--no-python]'"
        )


def speak() -> None:
    """Let the sweep itself be heard: its lines go to stdout, whatever jobs do with theirs."""
    log = logging.getLogger("llmexp.sweep")
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stdout))
