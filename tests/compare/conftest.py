"""Run folders as llmexp.train leaves them, made up quickly; and a browser."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from chromium import Browser

from llmexp import outcome, validation

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return the maker of run folders below outputs/."""
    monkeypatch.chdir(tmp_path)

    def made(
        name: str,
        *,
        lr: float = 1e-3,
        end: float = 2.0,
        settings: dict[str, Any] | None = None,
        text: str = " a fine day",
        finished: bool = True,
        losses: validation.Losses | None = None,
    ) -> Path:
        folder = Path("outputs") / name
        (folder / ".hydra").mkdir(parents=True)
        config: dict[str, Any] = {
            "seed": 42,
            "run": {"name": name},
            "optimizer": {"_target_": "torch.optim.AdamW", "lr": lr},
            "model": {"name": "gpt2-nano"},
            "logger": {"project": "llmexp", "group": None, "mode": "online"},
        }
        (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(config | (settings or {})))
        metrics, timing, samples = [], [], []
        for step in range(0, 101, 10):
            row: dict[str, Any] = {"train/global_step": step}
            loss = end + 3 * 0.95**step
            if step:
                row |= {"train/loss": loss, "train/learning_rate": lr, "train/grad_norm": 0.7}
                row |= {"train/epoch": step / 50, "train/tokens": step * 512}
            if step % 50 == 0:
                row |= {"eval/loss": loss + 0.1, "eval/perplexity": 9.0}
                samples.append({"train/global_step": step, "prompt": "One", "text": text})
            metrics.append(row)
            pace = {"perf/seconds": step / 20, "perf/tokens_per_second": 5000.0 + step}
            timing.append({"train/global_step": step} | pace | {"memory/peak_gib": 3.25})
        for file, rows in (("metrics", metrics), ("timing", timing), ("samples", samples)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{file}.jsonl").write_text(lines)
        if finished:
            outcome.write(folder, None, 100)
        if losses is not None:
            validation.write(folder, losses)
        return folder

    return made


def losses_of(shift: float, *, count: int = 200, seed: int = 0, first: int = 0) -> Any:
    """Return the losses of `count` examples: the same examples for every shift, in nats."""
    chance = np.random.default_rng(7)
    tokens = chance.integers(5, 40, first + count)
    level = chance.normal(3.0, 0.8, first + count)
    noise = np.random.default_rng(seed).normal(0, 0.05, first + count)
    nats = ((level + shift + noise) * tokens).astype(np.float32)
    keys = np.arange(first + count, dtype=np.int64) * 77
    part = slice(first, None)
    return validation.Losses(keys[part], tokens[part], nats[part], nats[part])


@pytest.fixture(name="losses_of")
def _losses_of() -> Callable[..., Any]:
    return losses_of


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a headless Chromium."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened
