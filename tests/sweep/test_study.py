"""Nothing is lost and nothing is counted twice, whoever dies, and whenever."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState

from llmexp.errors import LockedError, RequestError
from llmexp.sweep.live import Trial
from llmexp.sweep.space import parse
from llmexp.sweep.study import Claim, Study

TPE = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 4, "multivariate": True}
NONE = {"_target_": "optuna.pruners.NopPruner"}
SEARCHED = ("x=tag(log,interval(1e-6,1e-3))", "y=choice(4,8,16)")


def study(folder: Path, n_trials: int = 5, **changed: Any) -> Study:
    space = parse(OverridesParser.create().parse_overrides(list(changed.pop("space", SEARCHED))))
    settings = {"sampler": TPE, "pruner": NONE, "seed": 7, **changed}
    address = str(folder / "study.journal")
    return Study("s", space, folder=folder, address=address, n_trials=n_trials, **settings)


def job(worker: Study, claim: Claim, pruner: dict[str, Any] = NONE) -> Trial:
    return Trial(
        {
            "study": "s",
            "number": claim.number,
            "attempt": claim.attempt,
            "lock": str(worker.lock_file(claim.number)),
            "storage": worker.address,
            "pruner": pruner,
            "n_trials": 100,
        }
    )


def finish(worker: Study, claim: Claim, loss: float = 1.0) -> None:
    with job(worker, claim) as trial:
        trial.report(0, loss)
        trial.tell("finished", loss=loss)


def claimed(worker: Study) -> Claim:
    claim = worker.claim()
    assert claim is not None
    return claim


def in_a_process_that_dies(body: Callable[[], object]) -> None:
    """Run `body` in a fork that ends without any cleaning up, as by kill -9."""
    child = os.fork()
    if child == 0:
        try:
            body()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def test_the_number_of_trials_is_the_studys_not_the_commands(tmp_path: Path) -> None:
    for total, new in [(3, 3), (3, 0), (5, 2)]:
        with study(tmp_path, total) as worker:
            claims = []
            while (claim := worker.claim()) is not None:
                finish(worker, claim)
                claims.append(claim)
        assert len(claims) == new


def test_a_failed_trial_is_replaced_and_running_ones_count(tmp_path: Path) -> None:
    with study(tmp_path, 2) as worker:
        first, second = claimed(worker), claimed(worker)
        assert worker.claim() is None
        worker.tell(first, "failed", "broken")
        assert claimed(worker).number == 2
        finish(worker, second)
        assert worker.claim() is None


def test_in_pieces_a_search_proposes_what_it_proposes_in_one_go(tmp_path: Path) -> None:
    def points(folder: Path, totals: list[int]) -> list[dict[str, Any]]:
        found = []
        for total in totals:
            with study(folder, total) as worker:
                while (claim := worker.claim()) is not None:
                    finish(worker, claim, loss=abs(claim.params["x"] - 1e-4) * claim.params["y"])
                    found.append(claim.params)
        return found

    assert points(tmp_path / "a", [9]) == points(tmp_path / "b", [2, 5, 6, 9])


def test_two_workers_never_get_the_same_trial(tmp_path: Path) -> None:
    with study(tmp_path, 6) as one, study(tmp_path, 6) as two:
        claims = [claimed(worker) for _ in range(3) for worker in (one, two)]
        assert one.claim() is None
        assert two.claim() is None
    assert sorted(claim.number for claim in claims) == list(range(6))
    assert len({claim.params["x"] for claim in claims}) == 6


def test_a_trial_whose_worker_and_job_died_goes_on_under_its_number(tmp_path: Path) -> None:
    def dies() -> None:
        worker = study(tmp_path).__enter__()
        claim = claimed(worker)
        trial = job(worker, claim).__enter__()
        trial.report(0, 2.0)

    in_a_process_that_dies(dies)
    with study(tmp_path) as worker:
        again = claimed(worker)
        assert (again.number, again.attempt) == (0, 1)
        assert worker.trial(0).intermediate_values == {0: 2.0}
        finish(worker, again)
        assert claimed(worker).number == 1


def test_a_trial_killed_before_it_had_its_parameters_gets_them(tmp_path: Path) -> None:
    def dies() -> None:
        study(tmp_path).__enter__().optuna.ask()

    with study(tmp_path / "whole") as worker:
        expected = claimed(worker).params
    in_a_process_that_dies(dies)
    with study(tmp_path) as worker:
        again = claimed(worker)
    assert again.number == 0
    assert again.params == expected


def test_a_job_that_outlives_its_worker_is_waited_for_not_repeated(tmp_path: Path) -> None:
    claims: list[Claim] = []
    with study(tmp_path) as worker:
        claims.append(claimed(worker))
        worker.release(claims[0])
        with job(worker, claims[0]) as trial:
            assert [t.number for t in worker.adopted()] == [0]
            assert claimed(worker).number == 1
            trial.tell("finished", loss=1.0)
        assert worker.adopted() == []
        assert worker.trial(0).state == TrialState.COMPLETE


def test_a_job_that_wakes_up_after_its_trial_was_started_again_leaves(tmp_path: Path) -> None:
    with study(tmp_path) as worker:
        late = claimed(worker)
        worker.release(late)
        again = claimed(worker)
        assert again.attempt == 1
        with pytest.raises(LockedError, match="attempt 0 is over"), job(worker, late):
            pass
        with (
            job(worker, again),
            pytest.raises(LockedError, match="run it"),
            job(worker, again),
        ):
            pass
        finish(worker, again)
        with pytest.raises(LockedError, match="complete"), job(worker, again):
            pass


def test_a_worker_that_is_elsewhere_is_not_declared_dead(tmp_path: Path) -> None:
    in_a_process_that_dies(lambda: claimed(study(tmp_path).__enter__()))
    for file in (tmp_path / ".study").glob("worker-*"):
        file.unlink()  # as if its sweep folder were on another machine
    with study(tmp_path) as other:
        assert claimed(other).number == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"search x": "0.1 to 0.2"},
        {"metric": "accuracy"},
        {"train.epochs": 5},
        {"data.path": None},
    ],
)
def test_what_was_begun_otherwise_is_refused_with_the_difference(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    begun = {"search x": "1 to 2", "metric": "loss", "train.epochs": 3, "data.path": "a.txt"}
    key = next(iter(changed))
    with study(tmp_path) as worker:
        worker.agree(begun, allow_mismatch=False)
        worker.agree(dict(begun), allow_mismatch=False)
        with pytest.raises(RequestError, match=f"{key}: was {begun[key]}, is {changed[key]}"):
            worker.agree(begun | changed, allow_mismatch=False)
        worker.agree(begun | changed, allow_mismatch=True)
        with pytest.raises(RequestError):
            worker.agree(begun, allow_mismatch=False)


def test_enqueued_points_come_first_and_once(tmp_path: Path) -> None:
    point = {"x": 1e-4, "y": 8}
    for _ in range(2):
        with study(tmp_path) as worker:
            worker.enqueue([(point, {"of": "defaults"})])
            claim = claimed(worker)
            finish(worker, claim)
    with study(tmp_path) as worker:
        assert [trial.params == point for trial in worker.trials()] == [True, False]
        assert worker.trial(0).user_attrs["point"] == {"of": "defaults"}


def test_a_study_of_fixed_points_ends_with_them(tmp_path: Path) -> None:
    with study(tmp_path, 100, sampler=None) as worker:
        worker.enqueue([({"x": 1e-4, "y": 8}, {"seed": seed}) for seed in (1, 2)])
        assert [claimed(worker).point["seed"] for _ in range(2)] == [1, 2]
        assert worker.claim() is None


def test_a_grid_ends_when_every_point_was_asked_for(tmp_path: Path) -> None:
    grid = {"_target_": "optuna.samplers.GridSampler"}
    with study(tmp_path, 100, sampler=grid, space=("x=choice(1,2)", "y=choice(4,8)")) as worker:
        points = []
        while (claim := worker.claim()) is not None:
            points.append(tuple(claim.params.values()))
            finish(worker, claim)
    assert sorted(points) == [(1, 4), (1, 8), (2, 4), (2, 8)]


def test_an_infeasible_point_is_no_failure_and_never_the_best(tmp_path: Path) -> None:
    with study(tmp_path) as worker:
        for loss in (0.1, 3.0):
            with job(worker, claimed(worker)) as trial:
                trial.report(0, loss)
                trial.tell("infeasible" if loss < 1 else "finished", loss=loss)
        assert worker.trial(0).state == TrialState.PRUNED
        assert worker.trial(0).constraints == {"feasible": 1.0}
        assert worker.optuna.best_trial.number == 1


def test_a_validation_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with study(tmp_path) as worker, job(worker, claimed(worker)) as trial:
        assert trial.report(0, 3.0) is False
        assert trial.report(1, float("nan")) is True
        assert trial.fate == "infeasible"


def test_the_median_prunes_what_is_worse_and_a_restart_remembers(tmp_path: Path) -> None:
    median = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2}
    median |= {"n_warmup_steps": 1, "from_trials": 16}
    with study(tmp_path) as worker:
        for _ in range(2):
            with job(worker, claimed(worker), median) as trial:
                assert not any(trial.report(index, 1.0) for index in range(3))
                trial.tell("finished", loss=1.0)
        claim = claimed(worker)
        with job(worker, claim, median) as trial:
            assert trial.report(0, 5.0) is False  # warm-up
            assert trial.report(1, 5.0) is True
        with job(worker, claim, median) as trial:  # killed between the verdict and its telling
            assert trial.fate == "pruned"
        with job(worker, claim, median | {"from_trials": 101}) as trial:
            trial.fate = None
            assert trial.report(2, 5.0) is False  # too small a study to prune in


def test_a_storage_that_is_gone_costs_no_training(tmp_path: Path) -> None:
    with study(tmp_path) as worker, job(worker, claimed(worker)) as trial:
        journal = tmp_path / "study.journal"
        journal.rename(tmp_path / "aside")
        journal.mkdir()
        assert trial.report(0, 1.0) is False
        journal.rmdir()
        (tmp_path / "aside").rename(journal)
        assert trial.report(1, 1.0) is False
        trial.tell("finished", loss=1.0)
        assert worker.trial(0).value == 1.0


@pytest.mark.slow
def test_five_hundred_trials_stay_small(tmp_path: Path) -> None:
    """The seconds are told, not asserted: they are the machine's."""
    with study(tmp_path, 500) as worker:
        first = claimed(worker)
        finish(worker, first)
        known = worker.trial(0)
        for number in range(460):
            x, y = 10 ** -(3 + 3 * (number % 97) / 97), (4, 8, 16)[number % 3]
            loss = abs(x - 1e-4) + y
            worker.optuna.add_trial(
                optuna.trial.create_trial(
                    params={"x": x, "y": y},
                    distributions=known.distributions,
                    value=loss,
                    intermediate_values={0: loss},
                )
            )
        before, started = peak_mib(), time.perf_counter()
        asked = 0
        while (claim := worker.claim()) is not None:
            finish(worker, claim, loss=abs(claim.params["x"] - 1e-4) + claim.params["y"])
            asked += 1
        print(f"claim, run nothing, tell: {(time.perf_counter() - started) / asked:.3f} s")
    assert asked == 39
    assert peak_mib() - before < 100


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
