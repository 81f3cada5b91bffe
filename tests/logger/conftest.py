"""A machine without a W&B account, and a W&B server on loopback."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests of this folder share two modules

from wandb_server import WandbServer


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no settings and no cache of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name, value in {"HOME": home, "NETRC": home / ".netrc", "WANDB_HTTP_TIMEOUT": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server, and a key for it in the environment."""
    with WandbServer() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running
        assert running.unknown == []


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What W&B's logger has told the person so far, but that it waits, as on any slow machine."""
    caplog.set_level(logging.INFO, "llmexp")

    def lines() -> list[str]:
        told = [record.getMessage() for record in caplog.records]
        return [
            line for line in told if line.startswith("W&B") and "closing its run, for" not in line
        ]

    return lines
