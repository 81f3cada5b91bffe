"""A study survives a torn journal, and a password never reaches a file."""

import importlib.util
import json
from pathlib import Path

import optuna
import pytest

from llmexp.errors import RequestError, RunError
from llmexp.sweep import storage


def journal(folder: Path, trials: int) -> Path:
    path = folder / "study.journal"
    study = optuna.create_study(study_name="s", storage=storage.connect(str(path)))
    for number in range(trials):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1) + number)
    return path


def trials(path: Path) -> int:
    study = optuna.load_study(study_name="s", storage=storage.connect(str(path)))
    return len(study.trials)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_set_aside(tmp_path: Path, cut: int) -> None:
    path = journal(tmp_path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    last = whole.splitlines(keepends=True)[-1]
    assert storage.repair(path) == (0 if cut == 1 else len(last) - cut)
    assert trials(path) == 3
    assert journal(tmp_path / "other", 0).exists()


def test_a_line_written_behind_a_torn_one_is_saved(tmp_path: Path) -> None:
    path = journal(tmp_path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-2], lines[-2][:20], *lines[-2:]]))
    with pytest.raises(json.JSONDecodeError):
        trials(path)
    assert storage.repair(path) == 20
    assert path.read_bytes() == b"".join(lines)
    assert (tmp_path / "study.journal.torn").read_bytes() == lines[-2][:20] + b"\n"


def test_what_another_worker_left_torn_does_not_spoil_the_next_line(tmp_path: Path) -> None:
    path = journal(tmp_path, 2)
    study = optuna.load_study(study_name="s", storage=storage.connect(str(path)))
    with path.open("ab") as killed:
        killed.write(b'{"op_code":5,"wor')
    trial = study.ask()  # while the study is open: nobody has repaired it
    study.tell(trial, trial.suggest_float("x", 0, 1))
    assert trials(path) == 3
    assert (tmp_path / "study.journal.torn").read_bytes() == b'{"op_code":5,"wor\n'


def test_a_whole_journal_is_left_alone(tmp_path: Path) -> None:
    path = journal(tmp_path, 2)
    before = path.stat()
    assert storage.repair(path) == 0
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_the_default_is_a_journal_in_the_folder(tmp_path: Path) -> None:
    assert storage.locate(None, tmp_path, literal=True) == str(tmp_path / "study.journal")


def test_a_password_in_the_config_is_refused_and_never_shown() -> None:
    url = "postgresql://me:hunter2@localhost/studies"
    with pytest.raises(RequestError, match="PGPASSWORD") as refused:
        storage.locate(url, Path(), literal=True)
    assert "hunter2" not in str(refused.value)
    assert storage.locate(url, Path(), literal=False) == url
    assert "hunter2" not in storage.public(url)


def test_an_unknown_kind_of_storage_is_refused() -> None:
    with pytest.raises(RequestError, match="redis"):
        storage.locate("redis://localhost", Path(), literal=True)


def test_a_storage_that_does_not_answer_is_told_in_words() -> None:
    if not any(map(importlib.util.find_spec, ("psycopg", "psycopg2"))):
        pytest.skip("no driver is installed (pip install 'psycopg[binary]')")
    with pytest.raises(RunError, match="cannot be opened"):
        storage.connect("postgresql://localhost:1/none?connect_timeout=1")
