"""Steps that are not finite, spikes and a loss scale that collapses: told, and never in the
weights."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import digest, train

from llmexp import durable, engine
from llmexp.errors import RunError
from llmexp.health import WINDOW, Health

Seen = pytest.CaptureFixture[str]


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Multiply loss and gradient of some optimizer steps, counted from 1."""

    def fall_ill(steps: dict[int, float], *, loss_too: bool = True) -> None:
        real, batches = engine.accumulate, Batches()

        def accumulate(model: Any, batch: Any, *rest: Any) -> torch.Tensor:
            loss = real(model, batch, *rest)
            factor = steps.get(batches.number(batch.indices), 1.0)
            for parameter in model.parameters():
                parameter.grad.mul_(factor)
            return loss * factor if loss_too else loss

        monkeypatch.setattr(engine, "accumulate", accumulate)

    return fall_ill


class Batches:
    """Which step a batch belongs to: the order is that of the healthy run."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, ...], int] = {}

    def number(self, indices: tuple[int, ...]) -> int:
        return self.seen.setdefault(indices, len(self.seen) + 1)


@pytest.fixture(autouse=True)
def fresh(here: Path) -> None:
    """Begin without an older run."""
    for name in ("ill", "other"):
        shutil.rmtree(Path("outputs") / name, ignore_errors=True)


def events(name: str = "ill") -> list[dict[str, Any]]:
    rows = durable.read_lines(Path("outputs") / name / "timing.jsonl")[0]
    return [row for row in rows if "event" in row]


def finite(name: str = "ill") -> bool:
    from safetensors.torch import load_file

    weights = load_file(Path("outputs") / name / "final/model.safetensors")
    return all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


@pytest.mark.parametrize(("factor", "loss_too"), [(math.nan, True), (math.inf, False)])
def test_a_sick_step_is_told_with_its_examples_and_left_out(
    sick: Callable[..., None], capsys: Seen, factor: float, loss_too: bool
) -> None:
    sick({2: factor, 4: factor}, loss_too=loss_too)
    train("ill", "train.log_every=3")
    found = events()
    assert [row["train/global_step"] for row in found] == [2, 4]
    assert all(len(row["examples"]) == 16 for row in found)
    told = capsys.readouterr().err
    assert "step 2 is not finite" in told
    assert f"training examples {found[0]['examples'][0]}, " in told
    rows = durable.read_lines(Path("outputs/ill/metrics.jsonl"))[0]
    assert rows[-1]["train/nonfinite_steps"] == 2
    assert finite()


@pytest.mark.parametrize(("policy", "stops"), [("skip", 3), ("stop", 2)])
def test_the_run_stops_with_advice_and_the_log_shows_it(
    sick: Callable[..., None], policy: str, stops: int
) -> None:
    sick(dict.fromkeys((2, 3, 4), math.nan))
    with pytest.raises(RunError) as told:
        train("ill", f"train.on_nonfinite={policy}", "train.log_every=1")
    for word in ("learning rate", "precision=fp32", "training examples", "resume=outputs/ill"):
        assert word in str(told.value)
    rows = durable.read_lines(Path("outputs/ill/metrics.jsonl"))[0]
    assert rows[-1]["train/nonfinite_steps"] == (3 if policy == "skip" else 1)
    assert rows[-1]["train/global_step"] == (4 if policy == "skip" else 2)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_what_is_decided_does_not_depend_on_checkpoints(
    sick: Callable[..., None], every: int
) -> None:
    sick(dict.fromkeys((2, 3, 4), math.nan))
    with pytest.raises(RunError, match="step 5:"):
        train(
            "ill", "train.log_every=5", "train.validate_every=9", f"checkpoint.every_steps={every}"
        )
    saved = max(Path("outputs/ill/checkpoints").iterdir())
    assert json.loads((saved / "state.json").read_bytes())["state"]["state"]["step"] < 5
    with pytest.raises(RunError, match="step 5:"):
        train(
            *("ill", "train.log_every=5", "train.validate_every=9", "resume=auto"),
            f"checkpoint.every_steps={every}",
        )


def test_rollback_goes_on_from_the_best_weights_and_resumes_exactly(
    sick: Callable[..., None], capsys: Seen
) -> None:
    sick(dict.fromkeys((4, 5, 6), math.nan))
    settings = ("train.on_nonfinite=rollback", "train.max_steps=9", "checkpoint.every_steps=1")
    train("ill", *settings, "checkpoint.keep=20")
    assert "Back to the weights of step 3" in capsys.readouterr().err
    shutil.copytree("outputs/ill", "outputs/other")
    assert finite()
    for step in (8, 7, 6, 5):  # before, at and after the way back
        train(
            "other",
            *settings,
            "checkpoint.keep=20",
            f"resume=outputs/other/checkpoints/step-{step:08d}",
        )
        assert digest(Path("outputs/other")) == digest(Path("outputs/ill")), step


def test_rollback_gives_up_in_the_end(sick: Callable[..., None]) -> None:
    sick(dict.fromkeys(range(1, 30), math.nan))
    with pytest.raises(RunError, match="3 times back to the best weights did not help"):
        train("ill", "train.on_nonfinite=rollback", "train.max_steps=20", "train.validate_every=9")


def test_a_collapsing_loss_scale_is_explained(sick: Callable[..., None]) -> None:
    sick(dict.fromkeys(range(1, 90), math.nan))
    with pytest.raises(
        RunError, match=r"fp16 loss scale collapsed to 0\.[0-9]+ after 17 overflows"
    ):
        train("ill", "precision=fp16", "train.max_steps=40", "train.validate_every=20")


def healthy(count: int) -> Health:
    health = Health()
    for step in range(1, count + 1):
        assert health.take(
            step, 3 + (step % 5) / 10, 1 + (step % 3) / 10, examples=(), skipped=False
        )
    assert not health.findings
    return health


def test_a_spike_is_6_sigma_above_the_last_128_steps() -> None:
    for loss, norm, spikes in ((3.2, 1.1, 0), (9.0, 1.1, 1), (3.2, 9.0, 1), (3.9, 1.1, 0)):
        health = healthy(WINDOW)
        health.take(200, loss, norm, examples=(7,), skipped=False)
        assert health.spikes == len(health.findings) == spikes
    uneven = healthy(WINDOW)
    uneven.take(200, 3.2, 1.1, examples=(1, 2, 3), skipped=False)
    uneven.take(201, 9.0, 9.0, examples=(4,), skipped=False)  # the rest of an epoch: noisier
    assert uneven.spikes == 0
    early = healthy(WINDOW // 2 - 1)
    early.take(200, 9.0, 9.0, examples=(), skipped=False)
    assert early.spikes == 0
    assert len(healthy(500).losses) == WINDOW


@pytest.mark.parametrize("policy", ["report", "skip"])
def test_a_spike_is_told_and_left_out_if_so_asked(
    sick: Callable[..., None], capsys: Seen, policy: str
) -> None:
    many = (
        "train.batch_size=1",
        "train.max_steps=72",
        "train.validate_every=2",
        "optimizer.lr=1e-9",
    )
    sick({65: 1e4})  # half a window is known then
    train("ill", *many, f"train.on_spike={policy}", "train.log_every=7")
    assert [row["event"] for row in events()] == ["spike"]
    assert events()[0]["skipped"] is (policy == "skip")
    assert events()[0]["train/global_step"] == 65
