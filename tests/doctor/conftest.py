"""Curves as a run would write them, made up with a known label."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from llmexp.doctor import About, curves, diagnose

SETTINGS: dict[str, Any] = {
    "train": {"epochs": 4, "batch_size": 16, "max_grad_norm": 1.0, "micro_batch_size": "auto"},
    "optimizer": {"lr": 1e-3},
    "model": {"lr": 1e-3, "dropout": 0.0},
    "precision": {"name": "fp32"},
    "samples": {"temperature": 0.8},
    "hw": {"memory_gib": 12},
    "data": {"max_length": 512, "overlong": "split"},
}
Curve = Callable[[float], float]  # of the share of the run that is done


def healthy(done: float) -> float:
    """A loss that falls fast, then slowly."""
    return 3.0 + 3.0 * math.exp(-6 * done)


class Story:
    """A run: what it wrote, and what is to be found in it."""

    def __init__(
        self,
        train: Curve = healthy,
        val: Curve | None = None,
        *,
        steps: int = 400,
        norm: Curve = lambda done: 0.9,
        rate: Curve = lambda done: min(done / 0.1, (1 - done) / 0.9) * 1e-3,
        noise: float = 0.03,
        seed: int = 0,
        last: dict[str, Any] | None = None,
        pace: Curve = lambda done: 1000.0,
        peak: float = 5.0,
        waits: float = 0.02,
        samples: tuple[str, ...] = (),
        settings: dict[str, dict[str, Any]] | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        chance = random.Random(seed)
        self.metrics: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []
        val = val or (lambda done: train(done) + 0.05)
        for step in [0, 1, *range(10, steps + 1, 10)]:
            done = step / steps
            row: dict[str, Any] = {"train/global_step": step}
            if step:
                row |= {
                    "train/loss": train(done) * (1 + chance.gauss(0, noise)),
                    "train/learning_rate": rate(done),
                    "train/grad_norm": norm(done) * math.exp(chance.gauss(0, 0.2)),
                    "train/epoch": 4 * done,
                    "train/tokens": 500 * step,
                    "train/nonfinite_steps": 0,
                    "train/spikes": 0,
                }
            if step % (steps // 4) == 0:
                row["eval/loss"] = val(done) * (1 + chance.gauss(0, noise / 20))
            self.metrics.append(row)
            self.timing.append(
                {
                    "train/global_step": step,
                    "perf/tokens_per_second": pace(done) * (1 + chance.gauss(0, 0.05)),
                    "memory/peak_gib": peak,
                    "perf/data_share": waits,
                }
            )
        self.metrics[-1] |= last or {}
        self.samples = [
            {"train/global_step": steps, "prompt": "The", "text": text} for text in samples
        ]
        merged = {key: {**part, **(settings or {}).get(key, {})} for key, part in SETTINGS.items()}
        enough = {"validation_examples": 200, "train_examples": 2000, "padding": 0.05}
        self.about = About(merged, steps, {**enough, **(data or {})})

    def names(self) -> list[str]:
        """Return the names of what the doctor finds."""
        seen = curves(self.metrics, self.timing, self.samples)
        return [finding.name for finding in diagnose(seen, self.about)]


@pytest.fixture
def story() -> type[Story]:
    """Return the maker of runs."""
    return Story
