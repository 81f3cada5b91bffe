"""What a resume accepts, what it refuses, and what it leaves alone."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_runs import command, digest, run, train, tree

from llmexp import checkpoint, durable, resume
from llmexp.engine import Plan
from llmexp.errors import LockedError, RequestError


@pytest.fixture
def copy(here: Path, whole: dict[str, str]) -> Path:
    """Return a copy of a finished run: outputs/copy."""
    shutil.rmtree("outputs/copy", ignore_errors=True)
    shutil.copytree("outputs/whole", "outputs/copy")
    return Path("outputs/copy")


def test_where_nothing_gets_better_the_best_is_the_start(here: Path) -> None:
    train("worse", "optimizer.lr=5", "train.validate_every=0.2")
    folder = Path("outputs/worse")
    rows = durable.read_lines(folder / "metrics.jsonl")[0]
    losses = [row["eval/loss"] for row in rows if "eval/loss" in row]
    assert min(losses) == losses[0]
    start = safetensors.torch.load_file(folder / "checkpoints/step-00000000/model.safetensors")
    best = safetensors.torch.load_file(folder / "best/model.safetensors")
    assert all(torch.equal(start[name], best[name]) for name in best)


def test_a_run_may_begin_with_its_first_step(here: Path, whole: dict[str, str]) -> None:
    train("eager", "train.validate_first=false", "checkpoint.keep=9")
    rows = durable.read_lines(Path("outputs/eager/metrics.jsonl"))[0]
    assert [row["train/global_step"] for row in rows] == list(range(1, 7))
    assert not Path("outputs/eager/checkpoints/step-00000000").exists()
    for name in ("final/model.safetensors", "best/model.safetensors"):
        assert digest(Path("outputs/eager"))[name] == whole[name]


@pytest.mark.slow
def test_a_finished_run_exits_with_0_and_no_byte_changes(here: Path, copy: Path) -> None:
    before = tree(copy)
    for where in ("auto", "outputs/copy", "outputs/copy/checkpoints/step-00000006"):
        done = run(*command("copy", f"resume={where}"), cwd=here)
        assert done.returncode == 0, done.stderr
        assert "outputs/copy is finished: 6 steps, best validation loss" in done.stdout
        assert tree(copy) == before


def test_a_finished_run_goes_on_when_it_may_be_longer(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("copy", "resume=auto", "train.max_steps=8")
    assert "train.max_steps: 6 then, 8 now (the learning rate" in capsys.readouterr().out
    rows = durable.read_lines(copy / "metrics.jsonl")[0]
    assert [row["train/global_step"] for row in rows] == list(range(9))
    before = tree(copy)
    train("copy", "resume=auto", "train.max_steps=8")
    assert tree(copy) == before


def test_a_run_that_lacks_only_its_last_model_gets_it(copy: Path, whole: dict[str, str]) -> None:
    shutil.rmtree(copy / "final")
    for name in (".outcome", "report.md"):
        (copy / name).unlink()
    train("copy", "resume=auto")
    assert digest(copy) == whole
    assert (copy / "report.md").is_file()


def test_no_valid_checkpoint_is_an_error_and_nothing_is_deleted(copy: Path) -> None:
    for path in copy.glob("checkpoints/*/state.json"):
        path.write_bytes(b"{}")
    before = tree(copy)
    with pytest.raises(RequestError, match="not one checkpoint can be used, and none was deleted"):
        train("copy", "resume=auto")
    assert tree(copy) == before


def test_lost_checkpoints_are_no_reason_to_begin_again(copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    before = tree(copy)
    with pytest.raises(RequestError, match="has no checkpoint, though its metrics.jsonl reaches"):
        train("copy", "resume=auto")
    assert tree(copy) == before


def test_changed_settings_are_refused_with_both_values(copy: Path) -> None:
    before = tree(copy)
    with pytest.raises(RequestError) as told:
        train("copy", "resume=auto", "train.batch_size=8", "optimizer.lr=1.0", "checkpoint.keep=3")
    assert "train.batch_size: 16 then, 8 now" in str(told.value)
    assert "optimizer.lr: 0.003 then, 1.0 now" in str(told.value)
    assert "keep" not in str(told.value)
    assert tree(copy) == before


def test_changed_data_are_refused(here: Path, copy: Path) -> None:
    before, text = tree(copy), (here / "lines.txt").read_text()
    try:
        (here / "lines.txt").write_text(text.replace("cat", "dog"))
        with pytest.raises(RequestError, match="the data changed since this run began"):
            train("copy", "resume=auto")
    finally:
        (here / "lines.txt").write_text(text)
    assert tree(copy) == before


def test_patience_ends_a_run_once_and_more_of_it_lets_it_go_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("outputs/patient", ignore_errors=True)
    stuck = ("optimizer.lr=1e-30", "train.patience=1", "resume=auto")
    train("patient", *stuck)
    before = tree(Path("outputs/patient"))
    assert len(before["metrics.jsonl"].splitlines()) < 6
    train("patient", *stuck)
    assert "is finished" in capsys.readouterr().out
    assert tree(Path("outputs/patient")) == before
    train("patient", *stuck, "train.patience=9")
    assert len(Path("outputs/patient/metrics.jsonl").read_bytes().splitlines()) == 7


def test_the_second_process_is_turned_away_and_touches_nothing(here: Path, copy: Path) -> None:
    with durable.Lock(copy):
        before = tree(copy)
        done = run(*command("copy", "resume=outputs/copy"), cwd=here)
        assert tree(copy) == before
    assert done.returncode == LockedError.exit_code == 3
    assert "outputs/copy is in use by process" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_micro_batch_that_was_found_is_kept(here: Path) -> None:
    shutil.rmtree("outputs/small", ignore_errors=True)
    train("small", "train.max_steps=3")
    saved = checkpoint.peek(checkpoint.find(Path("outputs/small"))[0]).state
    settings, plan = saved["config"], Plan(micro_batch_size=16)
    shrunk = saved | {"micro_batch_size": 2}  # memory ran out once
    assert resume.micro_batch_size(shrunk, settings, plan) == 2
    assert resume.micro_batch_size({}, settings, plan) == 16
    other = settings | {"train": settings["train"] | {"micro_batch_size": 16}}
    assert resume.micro_batch_size(shrunk, other, plan) == 16


def test_a_run_that_never_began_says_what_to_type(here: Path) -> None:
    durable.Lock(Path("outputs/unborn")).release()
    done = run(*command("x", "resume=outputs/unborn"), cwd=here)
    assert done.returncode == 2
    assert "was stopped before it began" in done.stderr
