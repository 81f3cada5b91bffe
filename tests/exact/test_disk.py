"""A full disk: what was saved stays whole, the run stops loudly, and goes on when there is room."""

import contextlib
import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_runs import LEFT, child, command, digest, run, train

from llmexp import checkpoint, durable
from llmexp.durable import faults
from llmexp.errors import RunError


@pytest.fixture(autouse=True)
def fresh(here: Path) -> None:
    """Begin without an older run."""
    shutil.rmtree("outputs/full", ignore_errors=True)


def with_files_up_to(size: int, *overrides: str) -> int:
    """Run with a limit that every writer meets as on a full disk; return the exit code."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            train("full", "resume=auto", *overrides)
        except RunError as error:
            print(error)
            raise SystemExit(RunError.exit_code) from None

    return child(work)


def test_a_run_that_cannot_save_at_all_stops_before_its_first_step(
    whole: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert with_files_up_to(20_000) == 1
    told = capfd.readouterr()
    assert "This is the run's first checkpoint: make room" in told.out
    assert len(Path("outputs/full/metrics.jsonl").read_bytes().splitlines()) == 1
    train("full", "resume=auto")
    assert digest(Path("outputs/full")) == whole


def test_three_failed_saves_stop_the_run_and_the_older_checkpoints_are_whole(
    whole: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    train("full", "train.max_steps=3")
    before = checkpoint_folders()
    assert with_files_up_to(20_000, "train.max_steps=6") == 1
    told = capfd.readouterr()
    assert "saving failed 3 times in a row" in told.out
    assert told.err.count("what was saved before is whole") == 3
    assert "Traceback" not in told.err
    assert checkpoint_folders() == before
    assert all(checkpoint.defect(path) is None for path in before)
    assert not list(Path("outputs/full").rglob(".tmp-*"))
    train("full", "resume=auto", "train.max_steps=6")
    rows = durable.read_lines(Path("outputs/full/metrics.jsonl"))[0]
    assert [row["train/global_step"] for row in rows] == list(range(7))


def checkpoint_folders() -> list[Path]:
    return sorted(Path("outputs/full/checkpoints").iterdir())


def test_metrics_that_cannot_be_written_are_a_loud_error(
    whole: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    # nothing else is written on the way: only metrics and timing grow
    rarely = ("train.validate_every=100", "train.max_steps=400", "checkpoint.every_minutes=null")
    train("full", *rarely, "train.max_steps=3")
    size = Path("outputs/full/metrics.jsonl").stat().st_size
    room = max(path.stat().st_size for path in Path("outputs/full").rglob("*") if path.is_file())
    assert with_files_up_to(max(room, size + 60), *rarely) == 1
    told = capfd.readouterr()
    assert ".jsonl: File too large. The run stops so that no row is missing" in told.out
    for row in (Path("outputs/full") / "metrics.jsonl").read_bytes().splitlines(keepends=True):
        assert row.endswith(b"}\n")
    assert durable.read_lines(Path("outputs/full/metrics.jsonl"))[1] == 0
    assert with_files_up_to(resource.RLIM_INFINITY, *rarely) == 0
    shutil.rmtree("outputs/roomy", ignore_errors=True)
    train("roomy", *rarely, "train.max_steps=3")
    train("roomy", *rarely, "resume=auto")
    assert digest(Path("outputs/full")) == digest(Path("outputs/roomy"))


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_told_before_a_model_loads(here: Path) -> None:
    (here / "outputs").mkdir(exist_ok=True)
    (here / "outputs/file").write_text("in the way")
    done = run(*command("file", "resume=auto"), cwd=here)
    assert done.returncode == 2
    assert "outputs/file" in done.stderr
    assert "Traceback" not in done.stderr
    assert (here / "outputs/file").read_text() == "in the way"


def test_every_name_of_the_promise_exists(whole: dict[str, str]) -> None:
    assert set(whole) == set(LEFT)


@contextmanager
def without(names: tuple[str, ...], *, at_step: int) -> Iterator[list[str]]:
    """Fail every operation on a part of the run from the validation of a step to its end."""
    failed: list[str] = []

    def hook(operation: str, path: Path) -> None:
        metrics = Path("outputs/full/metrics.jsonl")
        rows = durable.read_lines(metrics)[0] if metrics.exists() else []
        step = rows[-1]["train/global_step"] if rows else -1
        if step == at_step and any(name in str(path) for name in names):
            failed.append(f"{operation} {path}")
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with faults.hooked(hook):
        yield failed


def best_validation(name: str) -> int:
    """Return the step of the best validation, and make sure that it is not the last or first."""
    rows = durable.read_lines(Path("outputs") / name / "metrics.jsonl")[0]
    losses = {row["train/global_step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    return min(losses, key=lambda step: losses[step])


NOISY = (  # the best model comes one step before the last
    *("optimizer.lr=0.1", "schedule=constant", "schedule.warmup=0"),
    "train.validate_every=0.2",
)


@pytest.fixture(scope="module")
def noisy(corpus: Path) -> tuple[int, dict[str, str]]:
    """Return the best step and the digest of a run whose best model is not its last."""
    with contextlib.chdir(corpus):
        train("noisy", *NOISY)
        best = best_validation("noisy")
        assert 0 < best < 6
        return best, digest(Path("outputs/noisy"))


def test_a_best_model_that_could_not_be_written_is_made_of_its_checkpoint(
    noisy: tuple[int, dict[str, str]],
) -> None:
    best, expected = noisy
    with without(("best",), at_step=best) as failed:
        train("full", *NOISY)
    assert failed
    assert digest(Path("outputs/full")) == expected


def test_so_is_one_whose_run_begins_again(noisy: tuple[int, dict[str, str]]) -> None:
    best, expected = noisy
    with without(("best",), at_step=best), pytest.raises(RunError, match="but for its best model"):
        train("full", *NOISY, f"train.max_steps={best}")
    train("full", *NOISY, "resume=auto")
    assert digest(Path("outputs/full")) == expected


def test_a_best_model_that_is_nowhere_is_trained_again(
    noisy: tuple[int, dict[str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    best, expected = noisy
    with (
        without(("best", "checkpoints"), at_step=best) as failed,
        pytest.raises(RunError, match=f"the best weights, of step {best}"),
    ):
        train("full", *NOISY)
    assert any("checkpoints" in operation for operation in failed)
    assert f"the best weights, of step {best}, are nowhere" in capfd.readouterr().err
    train("full", *NOISY, "resume=auto")
    assert digest(Path("outputs/full")) == expected
