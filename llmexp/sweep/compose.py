"""The config of a trial, composed in the sweeper: to check it, compare it, name its folder."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from llmexp.errors import RequestError
from llmexp.sweep.program import own_overrides
from llmexp.sweep.space import Space

# what trials that are compared may differ in: how a run fits, and what it leaves
FREE = (
    "hw",
    "logger",
    "run",
    "resume",
    "checkpoint",
    "samples",
    "train.micro_batch_size",
    "train.activation_checkpointing",
    "train.cuda_graphs",
    "train.log_every",
)


class Composer:
    """Composes what a job would compose from the same overrides."""

    def __init__(self, config: DictConfig, loader: ConfigLoader, check: str | None) -> None:
        self.config = config  # of the sweep itself
        self.loader = loader
        self._check = _function(check)
        self.sweep_dir = Path(str(config.hydra.sweep.dir)).absolute()

    def parse(self, overrides: list[str]) -> list[Override]:
        """Read overrides as Hydra does; raise RequestError where it cannot."""
        try:
            parsed = OverridesParser.create(config_loader=self.loader).parse_overrides(overrides)
        except HydraException as error:
            raise RequestError(str(error)) from None
        return list(parsed)

    def compose(self, overrides: list[str], number: int = 0) -> DictConfig:
        """Return the whole config of one job; raise RequestError where Hydra refuses."""
        try:
            composed = self.loader.load_sweep_config(self.config, overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise RequestError(f"{' '.join(overrides)}: {error}") from None
        with open_dict(composed):
            composed.hydra.job.id, composed.hydra.job.num = str(number), number
        return composed

    def subdir(self, overrides: list[str], number: int) -> str:
        """Return the folder of a job within the sweep's, as hydra.sweep.subdir asks for it."""
        return str(self.compose(overrides, number).hydra.sweep.subdir)

    def settings(self, overrides: list[str]) -> dict[str, Any]:
        """Return every leaf of the config by its dotted key, interpolations left as written."""
        return leaves(self.compose(overrides))

    def parts(self, parts: dict[str, str]) -> dict[str, Any]:
        """Return the settings that stand when nothing is chosen but these options of groups."""
        overrides = [
            *(f"{group}={option}" for group, option in parts.items()),
            *(line for line in own_overrides(self.config) if line.startswith("hydra.searchpath")),
        ]
        name = self.config.hydra.job.config_name
        return leaves(self.loader.load_configuration(name, overrides, RunMode.RUN))

    def check_corners(self, space: Space) -> None:
        """Refuse, before anything is trained, what a job would refuse at a point of the space."""
        _refuse_unequal_data(space, self.compose(list(space.fixed)))
        for overrides in space.corners():
            composed = self.compose(overrides)
            with open_dict(composed):
                del composed["hydra"]
            settings = OmegaConf.to_container(composed, resolve=True)
            assert isinstance(settings, dict)
            try:
                self._check(settings)
            except RequestError as error:
                raise RequestError(f"{overrides[-1]}: {error}") from None


def leaves(config: DictConfig) -> dict[str, Any]:
    """Return every leaf but Hydra's own by its dotted key, interpolations left as written."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return dict(_flat({key: value for key, value in plain.items() if key != "hydra"}, ""))


def is_free(key: str) -> bool:
    """Say whether a setting is free to differ between trials that are compared."""
    return any(key == name or key.startswith(f"{name}.") for name in FREE)


def fingerprint(space: Space, settings: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return what all trials of a study have in common."""
    common = {
        key: value
        for key, value in settings.items()
        if not is_free(key) and not any(f"{key}.".startswith(f"{name}.") for name in space.searched)
    }
    return {
        "metric": metric,
        **{f"search {key}": words for key, words in space.as_dict().items()},
        **common,
    }


def _refuse_unequal_data(space: Space, composed: DictConfig) -> None:
    """Refuse to compare batch sizes over equal steps: a batch of 32 sees 8 times the data of 4."""
    steps = OmegaConf.select(composed, "train.max_steps")
    if "train.batch_size" in space.searched and (steps or "train.max_steps" in space.searched):
        raise RequestError(
            f"train.max_steps={steps} and a searched train.batch_size do not go together: a "
            "trial with a large batch would be trained on more data, and win by that. Use epochs: "
            "train.max_steps=null train.epochs=..."
        )


def _flat(tree: Mapping[Any, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _function(path: str | None) -> Callable[[dict[Any, Any]], object]:
    """Return the function that checks a whole config, or one that accepts everything."""
    if path is None:
        return lambda settings: None
    module, _, name = path.rpartition(".")
    if not module.startswith("llmexp."):
        raise RequestError(f"hydra.sweeper.check={path}: only llmexp.* may be called.")
    function: Callable[[dict[Any, Any]], object] = getattr(importlib.import_module(module), name)
    return function
