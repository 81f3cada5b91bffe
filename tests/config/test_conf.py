"""Every page under conf/ composes, is checked, and changes what it names."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llmexp import config, request
from llmexp.rules import RULES

PAGES = sorted(path for path in request.CONF.rglob("*.yaml") if path.parent != request.CONF)
PATCHES = [path for path in PAGES if path.read_text().startswith("# @package _global_")]
NEEDED = {"hf": "model.name=some/model"}  # options with a value that only the user has


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(request.CONF), version_base="1.3"):
        return request.resolved(compose("train", list(overrides)))


def choice(page: Path) -> list[str]:
    group = page.parent.relative_to(request.CONF).as_posix()
    extra = {"text": "data.path=x", "jsonl": "data.path=x", "csv": "data.path=x"} | NEEDED
    extra |= {"parquet": "data.path=x"} | ({"hf": "data.path=x"} if group == "data" else {})
    plugin = ["hydra/sweeper=optuna"] if group.startswith("hydra") else []
    if group == "hydra":  # included by the sweeper, no choice
        return plugin
    return [*plugin, f"{group}={page.stem}", *([extra[page.stem]] if page.stem in extra else [])]


def test_pages_are_found() -> None:
    assert len(PAGES) > 30
    assert len(PATCHES) >= 9


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(request.CONF).as_posix())
def test_a_page_composes_and_passes_every_check(page: Path) -> None:
    config.check(composed(*choice(page)))


@pytest.mark.parametrize("page", PATCHES, ids=lambda p: p.relative_to(request.CONF).as_posix())
def test_a_patch_changes_what_it_names(page: Path) -> None:
    settings = dict(config.flat(composed(*choice(page))))
    patch = yaml.safe_load(page.read_text()) or {}
    named = {k: v for k, v in config.flat(patch) if k.split(".")[0] not in ("defaults", "hydra")}
    for key, value in named.items():
        assert settings[key] == value or "${" in str(value), key


@pytest.mark.parametrize("page", sorted((request.CONF / "hw").glob("*.yaml")), ids=lambda p: p.stem)
def test_hw_changes_how_a_run_fits_never_what_it_learns(page: Path) -> None:
    plain, patched = (dict(config.flat(composed(*o))) for o in ([], [f"hw={page.stem}"]))
    changed = {key for key in plain.keys() | patched.keys() if plain.get(key) != patched.get(key)}
    allowed = ("hw.", "precision.", "train.micro_batch_size", "train.activation_checkpointing")
    assert all(key.startswith(allowed) for key in changed)


def test_options_of_a_part_have_the_same_call_shape() -> None:
    for part in ("data", "logger", "precision", "model"):
        keys = {
            path.stem: set(yaml.safe_load(path.read_text()))
            for path in (request.CONF / part).glob("*.yaml")
        }
        assert len({frozenset(k) for k in keys.values()}) == 1, keys


def test_the_page_and_the_laws_name_the_same_settings() -> None:
    page = yaml.safe_load((request.CONF / "train.yaml").read_text())
    keys = {k for k, _ in config.flat(page) if k.split(".")[0] not in ("defaults", "hydra")}
    assert keys == set(RULES)


def test_names_and_defaults_users_know() -> None:
    settings = dict(config.flat(composed("model=gpt2")))
    expected = {
        "train.epochs": 3,
        "train.batch_size": 16,
        "train.micro_batch_size": "auto",
        "train.max_grad_norm": 1.0,
        "data.max_length": 512,
        "data.val_size": 0.1,
        "optimizer.lr": 5e-5,
        "seed": 42,
        "resume": None,
    }
    assert {key: settings[key] for key in expected} == expected


def test_a_preset_chosen_by_an_experiment_applies(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /hw: 12gb\ntrain: {batch_size: 4}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    search = f"hydra.searchpath=[file://{tmp_path}]"
    settings = composed("experiment=mine", search)
    assert settings["hw"]["name"] == "12gb"
    assert settings["train"]["batch_size"] == 4
    assert composed("experiment=mine", "train.batch_size=2", search)["train"]["batch_size"] == 2


def test_resolved_settings_hold_no_interpolation() -> None:
    assert "${" not in str(composed("model=gpt2"))
    assert OmegaConf.is_config(OmegaConf.create(composed()))
