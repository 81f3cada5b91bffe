"""Laws of llmexp.durable: a file or folder is the old one or the new one, whatever happens."""

import errno
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmexp import durable
from llmexp.durable import faults

OLD = {"config.json": b"old", "model.safetensors": b"old"}
NEW = {"config.json": b"new", "model.safetensors": b"new"}


def filled(folder: Path, files: dict[str, bytes]) -> Path:
    """Write and sync the files of a folder that has a temporary name."""
    durable.make_folder(folder)
    for name, data in files.items():
        with durable.Writer(folder / name) as file:
            file.write(data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def numbered(tmp_path: Path, start: Callable[[Path], object]) -> Callable[[], Path]:
    """Return a function that makes the next folder and puts the starting state into it."""
    numbers = itertools.count()

    def prepare() -> Path:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        start(folder)
        return folder

    return prepare


def test_a_file_is_replaced_by_temp_fsync_rename_fsync(tmp_path: Path) -> None:
    seen = faults.operations(lambda: durable.write_bytes(tmp_path / "a", b"1"))
    assert [operation for operation, _ in seen] == ["open", "write", "fsync", "rename", "fsync"]
    assert seen[-1][1] == tmp_path
    assert contents(tmp_path) == {"a": b"1"}


def test_a_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    prepare = numbered(tmp_path, lambda folder: durable.write_bytes(folder / "a", b"old"))
    found = set()
    for trial, folder in faults.trials(
        prepare, lambda folder: durable.write_bytes(folder / "a", b"new")
    ):
        durable.remove_leftovers(folder)
        assert contents(folder) in ({"a": b"old"}, {"a": b"new"}), trial
        found.add((folder / "a").read_bytes())
    assert found == {b"old", b"new"}


def test_a_replaced_folder_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    def put(files: dict[str, bytes]) -> Callable[[Path], None]:
        return lambda folder: durable.replace_directory(
            filled(folder / ".tmp-best", files), folder / "best"
        )

    found = set()
    for trial, folder in faults.trials(numbered(tmp_path, put(OLD)), put(NEW)):
        durable.remove_leftovers(folder)
        assert [path.name for path in folder.iterdir()] == ["best"], trial
        assert contents(folder / "best") in (OLD, NEW), trial
        found.add((folder / "best" / "config.json").read_bytes())
    assert found == {b"old", b"new"}


def test_a_removed_folder_is_whole_or_gone(tmp_path: Path) -> None:
    prepare = numbered(tmp_path, lambda folder: filled(folder / "step", OLD))
    for trial, folder in faults.trials(
        prepare, lambda folder: durable.remove_directory(folder / "step")
    ):
        assert contents(folder / "step") in (OLD, {}), trial
        durable.remove_leftovers(folder)
        assert contents(folder / "step") in (OLD, {}), trial


def test_clearing_leftovers_can_itself_fail(tmp_path: Path) -> None:
    def start(folder: Path) -> None:
        filled(folder / ".tmp-checkpoint-1", NEW)
        filled(folder / ".old-best", OLD)
        (folder / ".tmp-metrics.jsonl-1").write_text("half")

    for trial, folder in faults.trials(numbered(tmp_path, start), durable.remove_leftovers):
        durable.remove_leftovers(folder)
        assert [path.name for path in folder.iterdir()] == ["best"], trial
        assert contents(folder / "best") == OLD, trial


def test_leftovers_that_cannot_be_cleared_do_not_stop_a_start(tmp_path: Path) -> None:
    filled(tmp_path / ".tmp-checkpoint", NEW)
    with faults.failing(0, errno.EIO, lasting=True):
        assert durable.remove_leftovers(tmp_path) == [tmp_path / ".tmp-checkpoint"]


def test_publishing_never_overwrites(tmp_path: Path) -> None:
    durable.publish_directory(filled(tmp_path / ".tmp-a", OLD), tmp_path / "final")
    with pytest.raises(OSError, match="not empty"):
        durable.publish_directory(filled(tmp_path / ".tmp-a", NEW), tmp_path / "final")
    assert contents(tmp_path / "final") == OLD


def test_what_others_wrote_is_synced_deepest_first(tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file").write_text("x")
    seen = faults.operations(lambda: durable.sync_tree(tmp_path / "tree"))
    assert [path.name for _, path in seen] == ["file", "sub", "tree"]


def test_new_folders_are_synced_into_their_parents(tmp_path: Path) -> None:
    seen = faults.operations(lambda: durable.make_folder(tmp_path / "a" / "b"))
    assert [operation for operation, _ in seen] == ["mkdir", "fsync", "mkdir", "fsync"]
    durable.make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        durable.make_folder(tmp_path / "file")


def test_a_file_system_that_cannot_sync_folders_is_no_error() -> None:
    folder = os.open("/proc", os.O_RDONLY)
    with pytest.raises(OSError):
        os.fsync(folder)
    os.close(folder)
    durable.disk.sync_path(Path("/proc"))


def test_json_round_trips_what_floats_and_letters_there_are(tmp_path: Path) -> None:
    value = {"infinity": float("inf"), "third": 1 / 3, "text": "ä\u2028\ud800", "none": None}
    durable.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_bytes()) == value


def test_writer_knows_the_hash_of_what_it_wrote(tmp_path: Path) -> None:
    with durable.Writer(tmp_path / "a") as file:
        file.write(b"ab")
        file.write(memoryview(b"c"))
    assert (file.size, file.sha256) == (3, durable.sha256(tmp_path / "a"))


def test_a_power_cut_loses_what_was_not_synced(tmp_path: Path) -> None:
    def careless() -> None:
        file = durable.disk.open_new(tmp_path / "a")
        durable.disk.write(file, b"synced")
        durable.disk.sync(file)
        durable.disk.write(file, b"lost")
        durable.disk.rename(tmp_path / "a", tmp_path / "b")
        durable.disk.unlink(tmp_path / "c")

    assert faults.killed(5, careless, power_cut=True)
    assert (tmp_path / "b").read_bytes() == b"synced\0\0\0\0"
