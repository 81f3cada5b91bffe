"""The closed form in (layers, tokens) equals full traces, and is never under them."""

from __future__ import annotations

from typing import Any

import pytest

from llmexp.memory import formula, measure
from llmexp.memory.measure import Request
from llmexp.memory.nearest import FAMILY
from llmexp.memory.rungs import Case
from llmexp.memory.search import sizes
from llmexp.memory.setting import gpt2_config, layer_count
from llmexp.plan import composed

pytestmark = pytest.mark.skipif(
    not measure.SHIPPED.is_file(),
    reason="the numbers of the shipped plans are not measured: python -m llmexp.memory.ship",
)

POINTS = [
    (model, precision, checkpointing)
    for model in FAMILY
    for precision in ("bf16", "fp16")
    for checkpointing in (False, True)
]


def known(request: Request) -> measure.Result | None:
    return measure.shipped().get(request.key)


@pytest.mark.parametrize(("model", "precision", "checkpointing"), POINTS)
def test_the_formula_equals_the_full_traces_that_ship(
    model: str, precision: str, checkpointing: bool
) -> None:
    settings = composed([f"model={model}"])
    part = settings["model"]
    config = gpt2_config(part["architecture"], part["dropout"])
    case = Case(settings, config, (precision,))
    checked = 0
    for rows in sizes(case):
        (request,) = case.requests(rows, checkpointing=checkpointing)
        result = known(request)
        if result is None:
            continue
        (form,) = formula.forms([request]).values()
        layers, tokens = layer_count(config), rows * 512
        assert layers is not None
        error = form.peak(layers, tokens) / sum(result["parts"].values()) - 1
        assert error >= -1e-9
        assert error < (0.005 if tokens >= formula.KNOTS[-2] else 0.10)
        checked += 1
    if not checked:
        pytest.skip("no plan that ships needed it")


def test_enough_points_are_checked() -> None:
    if not measure.shipped():
        pytest.skip(f"the numbers that ship do not hold for {measure.versions()}")
    full = [result for result in measure.shipped().values() if "parts" in result]
    assert len(full) >= 12


def test_what_ships_is_what_a_trace_says_today() -> None:
    """Else run `python -m llmexp.memory.ship` again."""
    assert not changed("gpt2-nano", checkpointing=False)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "checkpointing"), [("distilgpt2", False), ("gpt2", True)])
def test_what_ships_of_larger_models_is_so_too(model: str, checkpointing: bool) -> None:
    assert not changed(model, checkpointing=checkpointing)


def changed(model: str, *, checkpointing: bool) -> list[Any]:
    """Return what a trace says today beside what ships, where they differ."""
    if not measure.shipped():
        pytest.skip(f"the numbers that ship do not hold for {measure.versions()}")
    settings = composed([f"model={model}"])
    part = settings["model"]
    config = gpt2_config(part["architecture"], part["dropout"])
    case = Case(settings, config, ("bf16", "fp16"))
    requests = [
        request
        for rows in sizes(case)
        for request in case.requests(rows, checkpointing=checkpointing)
        if known(request) is not None
    ]
    assert requests
    traced = measure.trace(requests)
    measure.stop()
    shipped = [known(request) for request in requests]
    return [pair for pair in zip(traced, shipped, strict=True) if pair[0] != pair[1]]
