"""What is said of a winner: that it lies at an edge, that it leads by chance, or nothing."""

import math
import random
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import FrozenTrial, TrialState, create_trial

from llmexp.sweep.outcome import best_loss, noise, ranking, warnings
from llmexp.sweep.report import table
from llmexp.sweep.space import Space, parse

SPACE = ("lr=tag(log,interval(1e-6,1e-2))", "batch=choice(4,8,16,32)")


def space(*overrides: str) -> Space:
    return parse(OverridesParser.create().parse_overrides(list(overrides)))


def finished(number: int, value: float, **params: Any) -> FrozenTrial:
    found = space(*SPACE)
    trial = create_trial(params=params, distributions=found.searched, value=value)
    trial.number = number
    return trial


def valley(scatter: float, count: int = 24) -> list[FrozenTrial]:
    """Trials around lr 1e-4, batch 16, each off by some scatter."""
    dice = random.Random(3)
    trials = []
    for number in range(count):
        lr, batch = 10 ** dice.uniform(-5, -3), dice.choice([8, 16])
        loss = 3 + 0.3 * (math.log10(lr) + 4) ** 2 + 0.01 * math.log2(16 / batch)
        trials.append(finished(number, loss + dice.gauss(0, scatter), lr=lr, batch=batch))
    return trials


@pytest.mark.parametrize(
    ("lr", "batch", "told"),
    [
        (1e-4, 8, []),
        (9e-3, 8, ["lr", "upper"]),
        (1.5e-6, 16, ["lr", "lower"]),
        (1e-4, 32, ["batch", "upper"]),
        (1e-4, 4, ["batch", "lower"]),
    ],
)
def test_a_winner_at_the_edge_of_the_space_is_told(lr: float, batch: int, told: list[str]) -> None:
    found = warnings([finished(0, 1.0, lr=lr, batch=batch)], space(*SPACE))
    assert len(found) == bool(told)
    assert all(word in found[0] for word in told)


@pytest.mark.parametrize("scatter", [0.003, 0.03])
def test_the_scatter_of_the_trials_is_found(scatter: float) -> None:
    found = noise(ranking(valley(scatter)))
    assert found is not None
    assert scatter / 2 < found < scatter * 2


def test_a_lead_within_the_scatter_is_told_and_a_clear_one_is_not() -> None:
    trials = valley(0.01)
    best = ranking(trials)[0]
    close = finished(90, best.value + 1e-4, **best.params)
    assert any("confirm=3" in line for line in warnings([*trials, close], space(*SPACE)))
    ahead = finished(91, best.value - 0.5, **best.params)
    assert not any("confirm=3" in line for line in warnings([*trials, ahead], space(*SPACE)))


def test_few_trials_say_nothing_of_their_scatter() -> None:
    assert noise(ranking(valley(0.1, count=7))) is None


def test_a_pruned_trial_is_judged_by_its_best_and_never_wins() -> None:
    pruned = create_trial(state=TrialState.PRUNED, value=2.0, intermediate_values={0: 1.5, 1: 2.0})
    assert best_loss(pruned) == 1.5
    assert ranking([pruned]) == []


def test_the_table_shows_the_best_first_and_what_is_not_known_as_a_dash() -> None:
    one = finished(0, 2.0, lr=1e-4, batch=8)
    two = finished(1, 1.0, lr=1e-3, batch=16)
    two.set_user_attr("perf/tokens_per_second", 12345.6)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table([one, two], ["lr"])
    ]
    assert rows[2] == ["1", "finished", "0.001", "1.0000", "12,346", "-"]
    assert rows[3] == ["0", "finished", "0.0001", "2.0000", "-", "-"]
