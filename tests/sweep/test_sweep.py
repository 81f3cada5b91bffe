"""A sweep as a user types it: what it leaves, what it refuses, what it survives in its trials."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from conftest import Toy

N4 = "hydra.sweeper.n_trials=4"
BASIC = "hydra/launcher=basic"


def test_a_sweep_leaves_its_best_as_command_experiment_and_results(toy: "Toy") -> None:
    said = toy.run(N4)
    folder = toy.folder / "multirun" / "toy"
    written = (folder / "optimization_results.yaml").read_text()
    results = yaml.safe_load(written)
    assert f"best_command: {results['best_command']}\n" in written  # on one line, to paste
    assert results["name"] == "optuna"
    assert results["trials"] == {"finished": 4}
    assert results["best_command"] in said
    assert {"report.md", "sweep.png", "multirun.yaml", "study.journal"} <= set(os.listdir(folder))
    assert all((folder / str(number) / "job.log").is_file() for number in range(4))
    best = toy.study().best_trial
    assert results["best_params"] == best.params
    assert results["best_value"] == best.value

    again = shlex.split(results["best_command"])[1:] + ["hydra.run.dir=again"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, *again], cwd=toy.folder, env=environment, check=True)
    told = json.loads((toy.folder / "again/evaluated.jsonl").read_text().splitlines()[-1])
    assert told == best.value
    composed = [
        yaml.safe_load((f / ".hydra/config.yaml").read_text())
        for f in (toy.folder / "again", folder / str(best.number))
    ]
    assert composed[0] == composed[1]


@pytest.mark.slow
def test_best_yaml_composes_to_the_config_of_the_best_trial(toy: "Toy", tmp_path: Path) -> None:
    toy.run(N4, BASIC, "optimizer=sgd", "pause=0.001", "seed=7")
    folder = toy.folder / "multirun" / "toy"
    experiments = tmp_path / "mine" / "experiment"
    experiments.mkdir(parents=True)
    (folder / "best.yaml").rename(experiments / "best.yaml")
    task = str(Path(__file__).parent / "toy" / "task.py")
    mine = ["--config-dir", str(tmp_path / "mine"), "experiment=best", "--cfg", "job"]
    command = [sys.executable, task, *mine]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    best = toy.study().best_trial.number
    assert yaml.safe_load(shown.stdout) == yaml.safe_load(
        (folder / str(best) / ".hydra/config.yaml").read_text()
    )


@pytest.mark.slow
def test_the_first_trial_is_the_configs_own_point(toy: "Toy") -> None:
    toy.run("hydra.sweeper.n_trials=1", BASIC)
    assert toy.study().trials[0].params == {"optimizer.lr": 5e-5, "train.batch_size": 8}


@pytest.mark.slow
def test_a_finished_search_says_so_and_a_larger_one_goes_on(toy: "Toy") -> None:
    toy.run("hydra.sweeper.n_trials=2", BASIC)
    starts = len(toy.job_pids())
    assert "2 of 2 trials done" in toy.run("hydra.sweeper.n_trials=2", BASIC)
    assert len(toy.job_pids()) == starts
    toy.run("hydra.sweeper.n_trials=3", BASIC)
    assert toy.states() == ["finished"] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("optimizer=choice(adamm,sgd)", "adamm"),
        ("optimizer.lrr=interval(1,2)", "optimizer.lrr"),
        ("optimizer.lr=tag(lgo,interval(1,2))", "tag"),
        ("train.max_steps=5", "train.max_steps"),
        ("hydra/sweeper/sampler=grid", "choice"),
        ("hydra.sweeper.study_name=a/b", "study_name"),
        ("+hydra.sweeper.sampler.n_start=1", "n_start"),
        ("hydra.sweeper.sampler._target_=os.system", "os.system"),
        ("hydra.sweeper.storage=sqlite://me:secret@host/x", "password"),
    ],
)
def test_a_wrong_request_ends_at_once_before_any_training(
    toy: "Toy", wrong: str, named: str
) -> None:
    assert named in toy.run(wrong, code=2)
    assert toy.job_pids() == []


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_told_in_words(toy: "Toy") -> None:
    (toy.folder / "multirun").write_text("a file is in the way")
    said = toy.run(code=1)
    assert "Traceback" not in said, said


def test_one_sweep_per_rank_is_refused(toy: "Toy") -> None:
    assert "command_prefix" in toy.run(code=2, RANK="0", LOCAL_RANK="0")
    assert "command_prefix" in toy.run("optimizer.lr=1e-5,1e-4", sweeper="basic", code=1, RANK="1")


@pytest.mark.slow
def test_other_settings_under_the_same_name_are_refused_with_the_difference(toy: "Toy") -> None:
    toy.run("hydra.sweeper.n_trials=1", BASIC)
    assert "train.validations: was 6, is 3" in toy.run("train.validations=3", BASIC, code=2)
    assert "search optimizer.lr" in toy.run("optimizer.lr=interval(0.1,0.2)", BASIC, code=2)
    assert "train.batch_size: was None, is 8" in toy.run("train.batch_size=8", BASIC, code=2)
    toy.run("train.validations=3", BASIC, "hydra.sweeper.allow_mismatch=true", N4)
    assert len(toy.states()) == 4


def test_what_does_not_fit_or_diverges_is_a_finding_and_the_search_goes_on(toy: "Toy") -> None:
    said = toy.run("hydra.sweeper.n_trials=8", BASIC, "memory=8", "nan_above=3e-4")
    states = toy.states()
    assert len(states) == 8
    assert set(states) == {"finished", "infeasible"}
    for trial, state in zip(toy.study().trials, states, strict=True):
        too_much = trial.params["train.batch_size"] > 8 or trial.params["optimizer.lr"] > 3e-4
        assert (state == "infeasible") == too_much
    assert "infeasible" in said


def test_when_every_trial_fails_the_third_ends_it_with_the_log(toy: "Toy") -> None:
    said = toy.run("fail=all", code=1)
    assert "this task always fails" in said
    assert str(toy.folder / "multirun" / "toy" / "2" / "job.log") in said
    assert toy.states() == ["failed"] * 3


@pytest.mark.slow
def test_a_task_that_returns_nothing_is_told_so(toy: "Toy") -> None:
    said = toy.run("fail=mute", BASIC, code=1)
    assert "returned None, where a sweep needs the loss" in said
    assert str(toy.folder / "multirun" / "toy" / "2") in said


@pytest.mark.slow
def test_a_plan_that_does_not_fit_is_a_finding_where_another_does(toy: "Toy") -> None:
    toy.run("hydra.sweeper.n_trials=6", BASIC, "plan=8")
    assert set(toy.states()) == {"finished", "infeasible"}
    sizes = [trial.params["train.batch_size"] for trial in toy.study().trials]
    assert [size > 8 for size in sizes] == [state == "infeasible" for state in toy.states()]


@pytest.mark.slow
def test_a_model_that_fits_nowhere_ends_the_sweep_at_once(toy: "Toy") -> None:
    for starts in (1, 2):  # and again when tried again
        assert "does not fit 0.00 GiB" in toy.run(BASIC, "plan=0", code=2)
        assert len(toy.job_pids()) == starts


@pytest.mark.slow
def test_a_prefix_that_is_no_program_is_refused(toy: "Toy") -> None:
    said = toy.run("hydra.launcher.command_prefix=[no-such-program]", code=2)
    assert "command_prefix: no-such-program cannot be started" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_pruner_that_never_came_to_act_is_told(toy: "Toy") -> None:
    few = ("hydra.sweeper.n_trials=2", "hydra.sweeper.pruner.from_trials=0", BASIC)
    assert "Nothing could be pruned" not in toy.run(*few)
    assert "Nothing could be pruned: the trials validated 3 times" in toy.run(
        *few, "train.validations=3", "hydra.sweeper.study_name=short"
    )


@pytest.mark.slow
def test_a_failure_between_successes_is_replaced(toy: "Toy") -> None:
    toy.run("hydra.sweeper.n_trials=3", BASIC, "fail=odd")
    assert toy.states() == ["finished", "failed"] * 2 + ["finished"]


@pytest.mark.slow
def test_when_nothing_fits_there_is_no_winner(toy: "Toy") -> None:
    assert "None of the 2 trials finished" in toy.run(
        "hydra.sweeper.n_trials=2", BASIC, "memory=0", code=1
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("manner", "state"), [("exit", "failed"), ("kill", "finished"), ("hang", "infeasible")]
)
def test_one_job_that_dies_does_not_hurt_the_others(toy: "Toy", manner: str, state: str) -> None:
    toy.run("hydra.sweeper.n_trials=2", f"fail={manner}", "hydra.launcher.timeout=15")
    assert toy.states()[:2] == ["finished", state]
    starts = {"exit": 3, "kill": 3, "hang": 2}  # replaced, continued, over
    assert len(toy.job_pids()) == starts[manner]


@pytest.mark.slow
def test_a_torn_journal_is_mended_and_the_search_goes_on(toy: "Toy") -> None:
    toy.run("hydra.sweeper.n_trials=2", BASIC)
    journal = toy.folder / "multirun/toy/study.journal"
    journal.write_bytes(journal.read_bytes() + b'{"op_code":5,"wor')
    assert "17 bytes were set aside" in toy.run("hydra.sweeper.n_trials=3", BASIC)
    assert toy.states() == ["finished"] * 3


@pytest.mark.slow
def test_two_searches_may_share_a_journal(toy: "Toy") -> None:
    toy.address = str(toy.folder / "shared.journal")
    two = ("hydra.sweeper.storage=shared.journal", "hydra.sweeper.n_trials=2", BASIC)
    one, other = toy.start(*two), toy.start(*two, "hydra.sweeper.study_name=other", "seed=1")
    assert [sweep.wait(120) for sweep in (one, other)] == [0, 0]
    assert toy.states() == ["finished"] * 2
    assert len(toy.study("other").trials) == 2


HOSTILE = "a 'b' \"c\" $HOME {d} [e],f=g;h&ü\\"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["process", "basic"])
def test_any_folder_will_do(toy: "Toy", launcher: str) -> None:
    toy.folder = toy.folder / HOSTILE
    toy.folder.mkdir()
    toy.run("hydra.sweeper.n_trials=2", f"hydra/launcher={launcher}")
    assert toy.evaluated() == {"0": 6, "1": 6}


@pytest.mark.slow
def test_the_winner_is_confirmed_over_fresh_seeds(toy: "Toy") -> None:
    said = toy.run("hydra.sweeper.n_trials=4", "hydra.sweeper.confirm=2", BASIC)
    again = toy.study("toy.confirm").trials
    top = sorted(toy.study().trials, key=lambda trial: trial.value)[:3]
    assert [t.params for t in again] == [t.params for t in top for _ in range(2)]
    seeds = sorted(path.name for path in (toy.folder / "multirun/toy/confirm").iterdir())
    assert seeds == sorted(f"{t.number}-seed{seed}" for t in top for seed in (43, 44))
    assert "Confirmed over 2 fresh seeds" in said
    assert len(toy.job_pids()) == 10
    toy.run("hydra.sweeper.n_trials=4", "hydra.sweeper.confirm=2", BASIC)
    assert len(toy.job_pids()) == 10


def test_a_plain_grid_runs_its_jobs_as_processes(toy: "Toy") -> None:
    toy.run(
        "optimizer.lr=1e-5,1e-4", "train.batch_size=4,8", "hydra.launcher.n_jobs=2", sweeper="basic"
    )
    runs = sorted(path.parent for path in toy.folder.glob("multirun/*/*/*/evaluated.jsonl"))
    assert [run.name for run in runs] == ["0", "1", "2", "3"]
    assert len(set(toy.job_pids())) == 4
    for run in runs:
        assert "task.py" in (run / "job.log").read_text()


@pytest.mark.slow
def test_a_grid_tells_which_job_failed_after_running_all(toy: "Toy") -> None:
    said = toy.run("train.batch_size=4,32,8", "memory=16", sweeper="basic", code=1)
    assert "MemoryError: batch 32 does not fit" in said
    assert "1/job.log" in said
    assert len(toy.job_pids()) == 3
