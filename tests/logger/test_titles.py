"""A run is called what was asked for: where many are side by side, what tells them apart."""

from pathlib import Path

import pytest
import yaml

from llmexp.logger.titles import group_of, name_of


def run(folder: Path, overrides: list[str], shared: list[str] | None = None) -> Path:
    """Make the files of a run that was asked for `overrides`."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(overrides))
    if shared is not None:
        told = {"hydra": {"overrides": {"task": shared}}}
        (folder.parent / "multirun.yaml").write_text(yaml.safe_dump(told))
    return folder


def test_a_single_run_is_its_folder_and_its_overrides(tmp_path: Path) -> None:
    made = run(tmp_path / "10-00-00-gpt2", ["optimizer.lr=1e-4", "hw=6gb", "logger.group=x"])
    assert name_of(made) == "10-00-00-gpt2 optimizer.lr=1e-4"
    assert group_of(made) is None


def test_a_job_of_a_multirun_is_what_it_does_not_share(tmp_path: Path) -> None:
    shared = ["train.epochs=1", "optimizer.lr=1e-4,1e-3"]
    made = run(tmp_path / "multirun/day/0", ["train.epochs=1", "optimizer.lr=1e-4"], shared)
    assert name_of(made) == "0 optimizer.lr=1e-4"
    assert group_of(made) == "multirun/day"


def test_a_name_that_a_person_gave_stays_alone(tmp_path: Path) -> None:
    assert name_of(run(tmp_path / "mine", ["run.name=mine", "seed=1"])) == "mine"


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "hydra: 1", "\x00"])
def test_damaged_files_cost_no_name(tmp_path: Path, text: str) -> None:
    made = run(tmp_path / "m/0", ["seed=1"], [])
    (made.parent / "multirun.yaml").write_text(text)
    assert name_of(made) == "0 seed=1"
    (made / ".hydra/overrides.yaml").write_text(text)
    assert name_of(made).startswith("0")
