"""A fault at any operation of save, prune and start leaves a checkpoint to continue from."""

import itertools
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmexp import checkpoint, durable
from llmexp.durable import faults

SCALER = torch.amp.GradScaler(enabled=False)


def save(folder: Path, step: int) -> Path:
    """Save a model whose weights are the step's number."""
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, step)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return checkpoint.save(
        folder, step, model=model, optimizer=optimizer, scaler=SCALER, state={"step": step}
    )


def newest_step(folder: Path) -> int | None:
    """Load the newest valid checkpoint into a model and return the step that it says."""
    path, _ = checkpoint.newest(folder)
    if path is None:
        return None
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    state = checkpoint.load(path, model=model, optimizer=optimizer, scaler=SCALER)
    assert isinstance(state["step"], int)
    return state["step"]


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def numbered(tmp_path: Path, *saved: int) -> Callable[[], Path]:
    """Return a function that makes the next folder, with checkpoints of these steps in it."""
    numbers = itertools.count()

    def prepare() -> Path:
        folder = tmp_path / str(next(numbers))
        for step in saved:
            save(folder, step)
        return folder

    return prepare


def test_a_save_adds_the_new_checkpoint_or_nothing(tmp_path: Path) -> None:
    outcomes = set()
    for trial, folder in faults.trials(numbered(tmp_path, 1), lambda folder: save(folder, 2)):
        outcomes.add(newest_step(folder))
        assert outcomes <= {1, 2}, trial
        assert all(checkpoint.defect(path) is None for path in folder.glob("step-*")), trial
        durable.remove_leftovers(folder)
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [], trial
        save(folder, 2)
        assert newest_step(folder) == 2, trial
    assert outcomes == {1, 2}


def test_a_failed_save_cleans_up_and_says_why(tmp_path: Path) -> None:
    save(tmp_path, 1)
    seen = faults.operations(lambda: save(tmp_path, 2))
    durable.remove_directory(tmp_path / "step-00000002")
    for number in range(len(seen) - 2):  # the rename and the last fsync are past the files
        with (
            faults.failing(number, 28),
            pytest.raises(checkpoint.SaveError, match="step-00000002 was not saved: No space left"),
        ):
            save(tmp_path, 2)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_every_file_is_synced_before_it_gets_its_name(tmp_path: Path) -> None:
    seen = faults.operations(lambda: save(tmp_path / "checkpoints", 2))
    last: dict[Path, str] = {}
    for operation, path in seen:
        if operation == "rename":
            assert set(last.values()) <= {"fsync", "mkdir"}, last
        last[path] = operation
    opened = [path.name for operation, path in seen if operation == "open"]
    assert opened[-1] == "manifest.json"
    assert len(opened) == 4
    assert seen[-1] == ("fsync", tmp_path / "checkpoints")


def test_pruning_never_costs_the_newest(tmp_path: Path) -> None:
    outcomes = set()
    for trial, folder in faults.trials(
        numbered(tmp_path, 1, 2, 3, 4), lambda folder: checkpoint.prune(folder, keep=2)
    ):
        assert newest_step(folder) == 4, trial
        assert checkpoint.defect(folder / "step-00000003") is None, trial
        outcomes.add(tuple(steps(folder)))
        durable.remove_leftovers(folder)
        checkpoint.prune(folder, keep=2)
        assert steps(folder) == [3, 4], trial
    assert outcomes == {(1, 2, 3, 4), (1, 3, 4), (3, 4)}


def test_a_start_can_be_killed_and_started_again(tmp_path: Path) -> None:
    prepare = numbered(tmp_path, 1, 2)

    def crashed() -> Path:
        folder = prepare()
        (folder / "step-00000002" / "model.safetensors").write_bytes(b"half")
        (folder / "step-00000001").rename(folder / ".tmp-step-00000009-1")
        save(folder, 1)
        with durable.JsonLines(folder / "metrics.jsonl") as metrics:
            for step in (1, 2):
                metrics.append({"train/global_step": step})
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"train/glob')
        return folder

    def start(folder: Path) -> None:
        durable.remove_leftovers(folder)
        step = newest_step(folder)
        assert step == 1
        with durable.JsonLines(folder / "metrics.jsonl") as metrics:
            metrics.truncate_to(step)

    for trial, folder in faults.trials(crashed, start):
        start(folder)
        rows, damaged = durable.read_lines(folder / "metrics.jsonl")
        assert (rows, damaged) == ([{"train/global_step": 1}], 0), trial
        assert not list(folder.glob(".tmp-*")), trial


def test_an_invalid_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    def damaged(folder: Path) -> Path:
        (save(folder, 2) / "state.json").write_text("{}")
        return folder

    prepare = numbered(tmp_path, 1)
    for trial, folder in faults.trials(lambda: damaged(prepare()), lambda folder: save(folder, 2)):
        assert newest_step(folder) in (1, 2), trial
        save(folder, 2)
        assert newest_step(folder) == 2, trial


def test_a_valid_checkpoint_of_the_same_step_is_kept(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    assert faults.operations(lambda: save(tmp_path, 2)) == []
    assert save(tmp_path, 2) == path


def in_child(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("limit", [0, 10, 200, 400])
def test_a_file_that_the_system_does_not_let_grow(tmp_path: Path, limit: int) -> None:
    save(tmp_path, 1)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(checkpoint.SaveError, match="File too large"):
            save(tmp_path, 2)

    assert in_child(limited) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert newest_step(tmp_path) == 1


def test_too_little_space_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    model: Any = torch.nn.Linear(2, 2)
    model.register_buffer("huge", torch.zeros(1).expand(10**15))  # no memory, 4 PB to write
    optimizer = torch.optim.SGD(model.parameters())

    def work() -> None:
        with pytest.raises(checkpoint.SaveError, match=r"needs [\d.]+ GiB, [\d.]+ GiB are free"):
            checkpoint.save(tmp_path, 1, model=model, optimizer=optimizer, scaler=SCALER, state={})

    assert faults.operations(work) == []
