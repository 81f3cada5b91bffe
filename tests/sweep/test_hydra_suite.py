"""Hydra's own tests for launchers, against ours: names, folders and overrides of jobs.

Its other suites hand over Python functions as tasks; a job of ours is a command, and has none.
"""

import os
from pathlib import Path

import pytest
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite

REPOSITORY = Path(__file__).parents[2]
FLAGS = ["-m", "hydra/launcher=process", f"hydra.searchpath=[file://{REPOSITORY / 'conf'}]"]


@pytest.fixture(autouse=True)
def plugin_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = REPOSITORY / "llmexp" / "sweep" / "plugins"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(plugins)]))


@pytest.mark.slow
@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, FLAGS)])
class TestProcessLauncher(IntegrationTestSuite):
    pass
