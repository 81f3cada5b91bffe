"""The grammar of a search is Hydra's own; whatever it does not mean is refused."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from llmexp.errors import RequestError
from llmexp.sweep.launch import quote
from llmexp.sweep.space import Space, parse


def space(*overrides: str) -> Space:
    return parse(OverridesParser.create().parse_overrides(list(overrides)))


@pytest.mark.parametrize(
    ("words", "distribution"),
    [
        ("4,8", CategoricalDistribution([4, 8])),
        ("choice(a,b)", CategoricalDistribution(["a", "b"])),
        ("choice(true,0.5)", CategoricalDistribution([True, 0.5])),
        ("interval(1e-5,1e-3)", FloatDistribution(1e-5, 1e-3)),
        ("interval(1,4)", FloatDistribution(1, 4)),  # as in Hydra
        ("int(interval(1,4))", IntDistribution(1, 4)),
        ("tag(log,interval(1e-5,1e-3))", FloatDistribution(1e-5, 1e-3, log=True)),
        ("tag(log,int(interval(4,64)))", IntDistribution(4, 64, log=True)),
        ("range(1,9,2)", IntDistribution(1, 7, step=2)),  # the stop is left out, as in Hydra
        ("range(0.0,1.0,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("range(9,1,-4)", IntDistribution(5, 9, step=4)),
        ("shuffle(range(1,2))", CategoricalDistribution([1])),
    ],
)
def test_each_form_means_one_distribution(words: str, distribution: BaseDistribution) -> None:
    assert space(f"x={words}").searched == {"x": distribution}


@pytest.mark.parametrize(
    "wrong",
    [
        "x=tag(lgo,interval(1,2))",
        "x=tag(log,interval(0,1))",
        "x=interval(2,1)",
        "x=tag(log,choice(1,2))",
        "x=range(1,1)",
        "x=choice(4,4)",
        "x=choice([1],[2])",
        "+x=choice(1,2)",
        "x=1",
    ],
)
def test_what_has_no_meaning_is_refused(wrong: str) -> None:
    with pytest.raises(RequestError):
        space(wrong)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(RequestError, match="(?s)x=.*low < high.*y=.*tag"):
        space("x=interval(2,1)", "y=tag(lgo,interval(1,2))")


def test_the_last_override_of_a_key_wins() -> None:
    found = space("x=choice(1,2)", "y=choice(1,2)", "x=7")
    assert found.fixed == ("x=7",)
    assert list(found.searched) == ["y"]


@pytest.mark.parametrize(
    "value", ["a b", "a,b", "it's", 'say "x"', "${HOME}", "\\", "ü={[()]}", ""]
)
def test_a_choice_and_a_quoted_text_come_back_as_they_were(value: str) -> None:
    parser = OverridesParser.create()
    assert OmegaConf.create({"x": parser.parse_override(f"x={quote(value)}").value()}).x == value
    found = space(f"x=choice({quote(value)},other)")
    first = found.grid()["x"][0]
    line = found.overrides({"x": first})[0]
    assert parser.parse_override(line).value() == value.replace("${", "\\${")


@pytest.mark.parametrize("value", ["8", "1e-3", "true", "null", "adamw", "a/b-c.d"])
def test_a_text_that_looks_like_something_else_stays_a_text(value: str) -> None:
    found = space(f"x=choice('{value}',other)")
    line = found.overrides({"x": value})[0]
    assert OverridesParser.create().parse_override(line).value() == value


def test_a_point_is_what_is_fixed_and_what_is_searched() -> None:
    found = space("a=1", "x=choice(true,false)", "y=interval(0.0,1.0)")
    assert found.overrides({"x": True, "y": 0.25}) == ["a=1", "x=true", "y=0.25"]


@pytest.mark.parametrize(
    ("value", "inside"), [(8, True), (5, False), (16, False), ("auto", False), (True, False)]
)
def test_the_defaults_are_a_point_only_inside_the_space(value: object, inside: bool) -> None:
    config = OmegaConf.create({"x": value, "hydra": {"runtime": {"choices": {}}}})
    point = space("x=range(4,13,4)").defaults(config)
    assert point == ({"x": value} if inside else None)


def test_the_default_of_a_group_is_its_choice() -> None:
    config = OmegaConf.create({"opt": {"lr": 1}, "hydra": {"runtime": {"choices": {"opt": "sgd"}}}})
    assert space("opt=choice(adamw,sgd)").defaults(config) == {"opt": "sgd"}


def test_the_grid_of_a_space_of_lists() -> None:
    assert space("x=choice(a,b)", "y=range(1,4)").grid() == {"x": ["a", "b"], "y": [1, 2, 3]}
    with pytest.raises(RequestError, match="choice"):
        space("x=interval(0.0,1.0)").grid()
