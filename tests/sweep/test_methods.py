"""Every sampler and pruner that conf/ offers can be built, and searches."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.pruners import MedianPruner, NopPruner

from llmexp.errors import RequestError
from llmexp.sweep.live import settle
from llmexp.sweep.methods import build_pruner, build_sampler
from llmexp.sweep.space import parse
from llmexp.sweep.study import Study

CONF = Path(__file__).parents[2] / "conf" / "hydra" / "sweeper"
NEEDS = {"qmc": ["scipy"], "gp": ["scipy", "torch"], "cmaes": ["cmaes"]}
NONE = {"_target_": "optuna.pruners.NopPruner"}


def page(kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONF / kind / f"{name}.yaml").read_text())
    return found


def names(kind: str) -> list[str]:
    return sorted(path.stem for path in (CONF / kind).glob("*.yaml"))


@pytest.mark.parametrize("name", names("sampler"))
def test_a_sampler_searches_within_the_space(tmp_path: Path, name: str) -> None:
    for module in NEEDS.get(name, []):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    wide = "choice(1,2,3,4,5)" if name == "grid" else "tag(log,interval(1e-6,1e-3))"
    words = [f"x={wide}", "y=choice(4,8)", "n=int(interval(1,3))" if name != "grid" else "n=1,2"]
    space = parse(OverridesParser.create().parse_overrides(words))
    with Study(
        "s",
        space,
        folder=tmp_path,
        address=str(tmp_path / "study.journal"),
        n_trials=12,
        sampler=page("sampler", name),
        pruner=NONE,
        seed=1,
    ) as study:
        points = []
        while (claim := study.claim()) is not None:
            points.append(tuple(claim.params.values()))
            trial = study._trial(claim.number)
            settle(study.optuna, trial, "finished", claim.params["x"] * claim.params["y"])
    assert len(points) == 12
    assert len(set(points)) == 12


@pytest.mark.parametrize("name", names("pruner"))
def test_a_pruner_can_be_built(name: str) -> None:
    assert isinstance(build_pruner(page("pruner", name), 100), object)


def test_the_default_prunes_from_sixteen_trials_on() -> None:
    median = page("pruner", "median")
    assert isinstance(build_pruner(median, 15), NopPruner)
    assert isinstance(build_pruner(median, 16), MedianPruner)


@pytest.mark.parametrize(
    "wrong",
    [
        {"_target_": "os.system"},
        {"_target_": "optuna.samplers.NoSuchSampler"},
        {"_target_": "optuna.samplers.TPESampler", "n_startup": 3},
        {"_target_": "optuna.pruners.MedianPruner"},
    ],
)
def test_what_is_no_sampler_is_refused(wrong: dict[str, Any]) -> None:
    space = parse(OverridesParser.create().parse_overrides(["x=choice(1,2)"]))
    with pytest.raises(RequestError, match="sampler"):
        build_sampler(wrong, space, seed=1, number=0)
