"""Any launcher of Hydra runs a search: a variable brings the trial, the storage its result back."""

import importlib.util
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Toy

LAUNCHERS = {
    "basic": ("hydra", []),
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "submitit_local": (
        "hydra_plugins.hydra_submitit_launcher",
        ["hydra.launcher.timeout_min=2", "hydra.launcher.mem_gb=null"],
    ),
    "ray": ("hydra_plugins.hydra_ray_launcher", ["+hydra.launcher.ray.init.num_cpus=2"]),
}


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_runs_trials_in_batches(toy: "Toy", launcher: str) -> None:
    module, settings = LAUNCHERS[launcher]
    if not installed(module):
        pytest.skip(f"{module} is not installed")
    toy.run(
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=2",
        f"hydra/launcher={launcher}",
        "memory=16",
        *settings,
    )
    assert len(toy.states()) == 4
    assert set(toy.states()) <= {"finished", "infeasible"}
    whole = [str(number) for number, state in enumerate(toy.states()) if state == "finished"]
    assert toy.evaluated() == dict.fromkeys(whole, 6)


@pytest.mark.slow
def test_a_killed_worker_takes_its_batch_down_and_the_batch_is_continued(toy: "Toy") -> None:
    if not installed("hydra_plugins.hydra_joblib_launcher"):
        pytest.skip("hydra-joblib-launcher is not installed")
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2")
    toy.run("hydra.sweeper.n_trials=4", "fail=kill", "pause=0.2", *joblib)
    assert toy.states() == ["finished"] * 4
    assert toy.evaluated() == {str(number): 6 for number in range(4)}


@pytest.mark.slow
def test_a_trial_may_be_several_processes(toy: "Toy") -> None:
    torchrun = f"{sys.executable},-m,torch.distributed.run,--standalone,--nproc-per-node,2"
    prefix = f"hydra.launcher.command_prefix=[{torchrun},--no-python]"
    toy.run("hydra.sweeper.n_trials=2", prefix)
    assert toy.states() == ["finished"] * 2
    assert toy.evaluated() == {"0": 6, "1": 6}
