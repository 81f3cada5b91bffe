"""conf/logger: the page of the command line, and what the environment says."""

import inspect as signatures
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from llmexp.logger import Logger
from llmexp.logger.wandb import Wandb

CONF = Path(__file__).parents[2] / "conf" / "logger"


def _settings(name: str) -> dict[str, Any]:
    settings = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def test_every_logger_has_the_arguments_of_the_silent_one() -> None:
    expected = {"_target_", *signatures.signature(Logger).parameters}
    for page in CONF.glob("*.yaml"):
        assert set(_settings(page.stem)) == expected, page.name


def test_the_variables_of_wandb_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _settings("wandb")["project"] == "llmexp"
    assert _settings("wandb")["entity"] is None
    assert _settings("wandb")["mode"] == "online"
    for name, value in {"PROJECT": "mine", "ENTITY": "we", "MODE": "dryrun"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    heard = {k: v for k, v in _settings("wandb").items() if k != "_target_"}
    logger = Wandb(**heard)
    assert (logger.project, logger.entity, logger.mode) == ("mine", "we", "offline")
