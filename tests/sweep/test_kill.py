"""Kill the sweeper, a job, or both, at any instant: the same command goes on.

Every job writes one line per validation. So a trial that was run twice, lost, or begun anew behind
its checkpoint shows: six validations are six lines, in exactly n_trials folders.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Toy

SIX = ("hydra.sweeper.n_trials=6", "pause=0.05")
THREE = ("hydra.sweeper.n_trials=3", "pause=0.2")
LONG = ("hydra.sweeper.n_trials=2", "pause=0.3")


def assert_whole(toy: "Toy", trials: int) -> None:
    assert toy.states() == ["finished"] * trials
    assert toy.evaluated() == {str(number): 6 for number in range(trials)}
    points = [tuple(trial.params.values()) for trial in toy.study().trials]
    assert len(set(points)) == trials


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    if alive(pid):
        os.kill(pid, number)


def test_kill_the_sweeper_and_its_job(toy: "Toy") -> None:
    sweep = toy.start(*THREE)
    toy.until(lambda: toy.evaluated().get("1", 0) >= 2)
    sweep.kill()
    kill(toy.job_pids()[-1])
    sweep.wait()
    said = toy.run(*THREE)
    assert "trial 1 (start 2)" in said
    assert_whole(toy, 3)


@pytest.mark.slow
def test_kill_the_sweeper_alone_and_its_job_is_waited_for(toy: "Toy") -> None:
    sweep = toy.start(*LONG)
    toy.until(lambda: bool(toy.job_pids()))
    sweep.kill()
    sweep.wait()
    assert alive(toy.job_pids()[0])
    toy.run(*LONG)
    assert len(toy.job_pids()) == 2
    assert_whole(toy, 2)


@pytest.mark.slow
def test_kill_a_job_and_the_sweep_continues_it(toy: "Toy") -> None:
    sweep = toy.start(*LONG)
    toy.until(lambda: sum(toy.evaluated().values()) >= 2)
    kill(toy.job_pids()[0])
    assert sweep.wait(60) == 0
    assert_whole(toy, 2)
    assert len(toy.job_pids()) == 3


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_stop_the_sweep_and_its_jobs_end_within_seconds(
    toy: "Toy", number: signal.Signals, code: int
) -> None:
    sweep = toy.start(*LONG, "hydra.launcher.n_jobs=2")
    toy.until(lambda: len(toy.job_pids()) == 2)
    started = time.monotonic()
    sweep.send_signal(number)
    assert sweep.wait(30) == code
    assert time.monotonic() - started < 10
    assert not any(map(alive, toy.job_pids()))
    toy.run(*LONG)
    assert_whole(toy, 2)


@pytest.mark.slow
def test_a_job_that_ignores_sigterm_is_killed_after_the_grace_period(toy: "Toy") -> None:
    sweep = toy.start("fail=deaf", "pause=2", "hydra.launcher.grace=1")
    toy.until(lambda: bool(toy.job_pids()))
    time.sleep(0.5)
    sweep.terminate()
    assert sweep.wait(20) == 143
    assert not alive(toy.job_pids()[0])
    assert toy.evaluated().get("0", 0) < 6  # it did not end by itself


@pytest.mark.slow
def test_a_grid_is_stopped_like_a_search(toy: "Toy") -> None:
    sweep = toy.start("optimizer.lr=1e-5,1e-4", "pause=1", sweeper="basic")
    toy.until(lambda: bool(toy.job_pids()))
    sweep.terminate()
    assert sweep.wait(20) == 143
    assert not any(map(alive, toy.job_pids()))
    assert len(toy.job_pids()) == 1


@pytest.mark.slow
def test_two_workers_share_one_search(toy: "Toy") -> None:
    workers = [toy.start(*SIX) for _ in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    assert_whole(toy, 6)
    assert len(toy.job_pids()) == 6
    owners = {trial.user_attrs["worker"] for trial in toy.study().trials}
    assert len(owners) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "kills"), [("process", 14), ("basic", 6)])
def test_twenty_kills_at_random_moments(toy: "Toy", launcher: str, kills: int) -> None:
    dice = random.Random(6)
    command = (*SIX, f"hydra/launcher={launcher}", "hydra.sweeper.max_retries=100")
    for _ in range(kills):
        sweep = toy.start(*command)
        time.sleep(dice.uniform(0.4, 3.0))
        victim = dice.choice(["sweeper", "job", "both"])
        if victim != "job":
            sweep.kill()
        if victim != "sweeper":
            for pid in toy.job_pids():
                kill(pid)
        if victim == "job" and launcher == "process" and dice.random() < 0.5:
            time.sleep(0.5)
        sweep.kill()
        sweep.wait()
        if sweep.stdout:
            sweep.stdout.close()
    toy.run(*command)
    assert_whole(toy, 6)


@pytest.mark.slow
def test_pieces_end_where_one_go_ends(toy: "Toy", tmp_path: Path) -> None:
    four = ("hydra.sweeper.n_trials=4", "pause=0.05")
    toy.run(*four)
    whole = [(trial.params, trial.value) for trial in toy.study().trials]
    toy.folder = tmp_path / "pieces"
    toy.folder.mkdir()
    sweep = toy.start(*four)
    toy.until(lambda: len(toy.job_pids()) == 2)
    sweep.kill()
    kill(toy.job_pids()[-1])
    sweep.wait()
    toy.run("hydra.sweeper.n_trials=3", four[1])
    toy.run(*four)
    assert [(trial.params, trial.value) for trial in toy.study().trials] == whole
