"""A checkpoint with one wrong byte is not used, and the file with that byte is named."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmexp import checkpoint
from llmexp.errors import RequestError

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
SCALER = torch.amp.GradScaler(enabled=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Make a run folder with the checkpoints of steps 1, 2 and 3."""
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in (1, 2, 3):
        model(torch.ones(1, 8)).sum().backward()
        optimizer.step()
        checkpoint.save(
            tmp_path / "run" / "checkpoints",
            step,
            model=model,
            optimizer=optimizer,
            scaler=SCALER,
            state={"step": step},
        )
    return tmp_path / "run"


def at(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 1
    path.write_bytes(data)


def zero_second_half(path: Path) -> None:
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(len(data) - half))


DAMAGES: list[Callable[[Path], object]] = [
    flip,
    zero_second_half,
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    Path.unlink,
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_the_one_before_is_used(
    run: Path, name: str, damage: Callable[[Path], object]
) -> None:
    damage(at(run, 3) / name)
    path, rejected = checkpoint.newest(run / "checkpoints")
    assert path == at(run, 2)
    assert [bad for bad, _ in rejected] == [at(run, 3)]
    assert name in rejected[0][1]
    found, notes = checkpoint.find(run)
    assert found == path
    assert str(at(run, 3)) in notes[0]
    with pytest.raises(RequestError, match=name):
        checkpoint.find(at(run, 3))


def test_no_bit_of_the_manifest_can_change_unseen(run: Path) -> None:
    manifest = at(run, 3) / "manifest.json"
    whole = manifest.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            manifest.write_bytes(data)
            assert checkpoint.defect(at(run, 3)) is not None, (place, bit)


def test_two_bad_ones_are_both_told(run: Path) -> None:
    flip(at(run, 3) / "model.safetensors")
    (at(run, 2) / "manifest.json").unlink()
    path, notes = checkpoint.find(run)
    assert path == at(run, 1)
    assert "model.safetensors is damaged" in notes[0]
    assert "manifest.json is missing" in notes[1]


def test_all_bad_is_an_error_and_nothing_is_deleted(run: Path) -> None:
    for step in (1, 2, 3):
        flip(at(run, step) / "state.json")
    before = sorted(run.rglob("*"))
    assert checkpoint.newest(run / "checkpoints")[0] is None
    with pytest.raises(
        RequestError, match="not one checkpoint can be used, and none was deleted"
    ) as told:
        checkpoint.find(run)
    assert str(told.value).count("state.json is damaged") == 3
    assert checkpoint.prune(run / "checkpoints", keep=1) == []
    assert sorted(run.rglob("*")) == before


def test_pruning_keeps_the_newest_valid_one_below_damaged_ones(run: Path) -> None:
    flip(at(run, 3) / "model.safetensors")
    assert checkpoint.prune(run / "checkpoints", keep=1) == [at(run, 1)]
    assert checkpoint.newest(run / "checkpoints")[0] == at(run, 2)


def test_pruning_keeps_the_best(run: Path) -> None:
    assert checkpoint.prune(run / "checkpoints", keep=1, best_step=1) == [at(run, 2)]
    assert at(run, 1).exists()


def test_going_back_removes_what_came_after(run: Path) -> None:
    assert checkpoint.remove_after(run / "checkpoints", 1) == [at(run, 3), at(run, 2)]
    assert checkpoint.find(run)[0] == at(run, 1)


def test_a_format_of_the_future_is_told(run: Path) -> None:
    manifest = at(run, 3) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    assert checkpoint.defect(at(run, 3)) == "manifest.json has format 2, this version reads 1"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_a_defect(run: Path) -> None:
    (at(run, 3) / "model.safetensors").chmod(0)
    assert checkpoint.newest(run / "checkpoints")[0] == at(run, 2)


def test_other_names_are_not_checkpoints(run: Path) -> None:
    shutil.copytree(at(run, 3), run / "checkpoints" / "step-99999999-copy")
    shutil.copytree(at(run, 3), run / "checkpoints" / ".tmp-step-00000009-1")
    assert checkpoint.newest(run / "checkpoints") == (at(run, 3), [])


@pytest.mark.parametrize(
    ("name", "content"),
    [("last.pt", b""), ("pytorch_model.bin", b""), ("renamed", b"PK\3\4"), ("old", b"\x80\x02")],
)
def test_a_pickle_is_refused_unread(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match="is a pickle, and reading one can run any code"):
        checkpoint.find(tmp_path / name)


def test_what_is_no_run_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no such folder"):
        checkpoint.find(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="there is no checkpoint in it"):
        checkpoint.find(tmp_path)
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(RequestError, match="is a file; a checkpoint is a folder"):
        checkpoint.find(tmp_path / "notes.txt")
    (tmp_path / "optimizer.pt").write_bytes(b"PK")
    with pytest.raises(RequestError, match=r"looks like a model folder.*model\.weights="):
        checkpoint.find(tmp_path)
