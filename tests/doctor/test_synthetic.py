"""Curves with a known label: the doctor finds it, and nothing else."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from llmexp import config, request
from llmexp.doctor import About, Doctor, curves, diagnose, lines, summary

Make = Callable[..., Any]
PARROT = "and then he said that he said that he said that he said that he said"
PROSE = "one fine day a small bird flew over the hill to look for its friends"


def down(to: float, speed: float = 12) -> Callable[[float], float]:
    return lambda done: to + (6 - to) * math.exp(-speed * done)


SICK: dict[str, list[dict[str, Any]]] = {
    "rising": [
        {"train": lambda done: 6 + 3 * done},
        {"train": lambda done: 6.0 if done < 0.01 else 40.0},
    ],
    "flat": [
        {"train": lambda done: 6.0},
        {"train": down(5.0, 40), "data": {"frequency_loss": 5.01}},
        {"train": lambda done: 5.0 if done > 0.02 else 6.0},
        {"train": lambda done: 6.0, "steps": 40, "noise": 0.01},  # few rows
    ],
    "overfitting": [
        {"train": down(0.5, 4), "val": lambda done: 3 + 8 * (done - 0.5) ** 2},
        {"train": down(2, 3), "val": lambda done: 4 + 0.3 * done},
    ],
    "underfitting": [
        {"train": lambda done: 6 - 2 * done, "rate": lambda done: min(1, done / 0.1) * 1e-3},
        {"train": lambda done: 6 - 2 * done, "val": lambda done: 6.1 - 2 * done},
    ],
    "spikes": [{"last": {"train/spikes": 12}}],
    "non-finite": [{"last": {"train/nonfinite_steps": 1}}],
    "scaler collapse": [
        {"last": {"train/nonfinite_steps": 40}, "settings": {"precision": {"name": "fp16"}}}
    ],
    "clipping": [{"norm": lambda done: 30.0}],
    "dead gradients": [{"norm": lambda done: 1.0 if done < 0.3 else 1e-9}],
    "exploding gradients": [
        {
            "norm": lambda done: 0.5 if done < 0.4 else 500.0,
            "settings": {"train": {"max_grad_norm": math.inf}},
        }
    ],
    "warm-up": [
        {"rate": lambda done: done * 1e-3},
        {"rate": lambda done: min(done / 0.7, (1 - done) / 0.3) * 1e-3},
    ],
    "data-bound": [{"waits": 0.6}],
    "padding": [{"data": {"padding": 0.7}}],
    "validation too small": [{"data": {"validation_examples": 4}}],
    "repeating samples": [{"samples": (PARROT, PARROT, PROSE)}],
    "memory spill": [{"peak": 11.9, "pace": lambda done: 1000 if done < 0.5 else 200}],
}
HEALTHY: list[dict[str, Any]] = [
    {},
    {"train": down(2.5, 6), "steps": 2000},
    # fine-tuning: a power law of the learning rate spent so far
    {"train": lambda done: 3.4 - 0.25 * math.sqrt(1 - (1 - done) ** 2), "noise": 0.02},
    {"train": down(1.0, 8), "val": down(3.2, 8)},  # a gap that does not widen at its end
    {"norm": lambda done: 2.0},
    {"last": {"train/nonfinite_steps": 4}, "settings": {"precision": {"name": "fp16"}}},
    {"last": {"train/spikes": 2}},
    {"peak": 11.9},
    {"pace": lambda done: 1000 - 300 * done},
    {"samples": (PROSE, PROSE, "short")},
    {"rate": lambda done: 1e-3, "train": down(3, 6)},
    {"data": {"frequency_loss": 4.5}},
]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "made"), [(n, m) for n, all in SICK.items() for m in all])
def test_a_sick_curve_is_recognised(
    name: str, made: dict[str, Any], seed: int, story: Make
) -> None:
    assert name in story(**made, seed=seed).names()


def test_a_run_that_gets_worse_on_both_sides_does_not_overfit(story: Make) -> None:
    def back(done: float) -> float:
        return 4 + 2 * (2 * done - 1) ** 2

    assert "overfitting" not in story(back, lambda done: back(done) + 0.3).names()


def test_a_run_that_overfits_is_not_called_flat_too(story: Make) -> None:
    made = {**SICK["overfitting"][0], "data": {"frequency_loss": 3.0}}
    assert story(**made).names() == ["overfitting"]


def test_a_run_that_diverged_and_comes_down_does_not_overfit(story: Make) -> None:
    def high(done: float) -> float:
        return 6.0 if done < 0.01 else 2000 - 1000 * done

    told = story(high)
    assert told.names() == ["rising"]
    assert "overfitting" not in " ".join(lines(curves(told.metrics, told.timing)))


def test_what_learns_its_examples_by_heart_is_not_called_shuffled(story: Make) -> None:
    told = story(down(1.0, 8), down(3.2, 40), data={"frequency_loss": 3.1}, noise=0)
    found = diagnose(curves(told.metrics, told.timing), told.about)
    assert not any("order of the words" in finding.says for finding in found)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("made", HEALTHY)
def test_nothing_is_found_in_a_healthy_one(made: dict[str, Any], seed: int, story: Make) -> None:
    assert story(**made, seed=seed).names() == []


def test_a_finding_says_numbers_and_overrides_that_the_command_line_takes(story: Make) -> None:
    overrides = set()
    for made in (m for all in SICK.values() for m in all):
        told = story(**made)
        for finding in diagnose(curves(told.metrics, told.timing, told.samples), told.about):
            assert any(char.isdigit() for char in finding.says), finding
            assert finding.causes
            overrides |= {cause.override for cause in finding.causes}
    for override in overrides:
        with initialize_config_dir(str(request.CONF), version_base="1.3"):
            line = ["data=text", override.replace("FOLDER", "f")]
            line.insert(1, "data.path=my.txt") if "data.path" not in override else None
            config.check(request.resolved(compose("train", line)))


def paired(told: Any, start: int) -> list[tuple[Any, Any]]:
    return list(zip(told.metrics[start:], told.timing[start:], strict=True))


def test_the_doctor_speaks_once_and_a_resumed_one_goes_on(story: Make) -> None:
    told = story(**SICK["overfitting"][0])
    whole = Doctor(told.about)
    said = [[f.name for f in whole.see(*rows)] for rows in paired(told, 0)]
    assert sum(said, []) == ["overfitting"]
    for cut in range(0, len(said), 3):
        resumed = Doctor(told.about)
        resumed.replay(told.metrics[:cut], told.timing[:cut])
        rest = paired(told, cut)
        assert [[f.name for f in resumed.see(*rows)] for rows in rest] == said[cut:]
        assert resumed.verdict() == whole.verdict()


def test_a_line_per_validation_says_what_it_means() -> None:
    rows = [{"train/global_step": 0, "eval/loss": 3.0}]
    for epoch, train, val in ((1, 2.5, 2.1), (2, 2.1, 2.0), (3, 1.7, 2.4), (4, 1.6, 2.01)):
        rows.append(
            {"train/global_step": 10 * epoch, "train/epoch": epoch, "train/tokens": epoch * 100}
            | {"train/loss": train, "eval/loss": val}
        )
    assert lines(curves(rows, [])) == [
        "Epoch 0: val 3.000: before training",
        "Epoch 1: train 2.500, val 2.100, was 3.000: still improving",
        "Epoch 2: train 2.100, val 2.000, was 2.100: still improving",
        "Epoch 3: train 1.700, val 2.400, was 2.000: overfitting; best stays epoch 2",
        "Epoch 4: train 1.600, val 2.010, was 2.400: no better; best stays epoch 2",
    ]


HOSTILE: tuple[Any, ...] = (None, "nan", "-inf", 1e308, -1, 0, "x", [], {}, True, 10**400)


def test_no_row_whatever_makes_it_fail(story: Make) -> None:
    told = story()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in HOSTILE:
            for key in told.metrics[-1]:
                for places in (slice(None), slice(-9, None), slice(0, 3)):
                    rows = [dict(row) for row in told.metrics]
                    for row in rows[places]:
                        row[key] = value
                    seen = curves(rows, told.timing, told.samples)
                    diagnose(seen, About(told.about.settings, 400))
                    assert summary(seen), (key, value)
                    lines(seen)


def test_no_rows_at_all() -> None:
    for rows in ([], [{}], [{"train/global_step": 0, "eval/loss": 3.0}]):
        seen = curves(rows, rows, rows)
        assert diagnose(seen, About()) == []
        assert summary(seen)
        json.dumps(lines(seen))


def test_the_doctor_needs_no_torch() -> None:
    folder = Path(__file__).resolve().parents[2] / "llmexp" / "doctor"
    assert not any("import torch" in path.read_text() for path in folder.glob("*.py"))
