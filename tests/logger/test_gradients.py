"""Gradients are shown when they are asked for, and looking at them changes nothing."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_run import inspect, run_info

from llmexp.errors import RequestError
from llmexp.logger import Histogram, Logger
from llmexp.logger.gradients import histogram, watch
from llmexp.logger.tensorboard import TensorBoard
from llmexp.logger.wandb import Wandb

Shown = dict[int, Mapping[str, Histogram]]


def train(every: int = 0, *, ill: bool = False) -> tuple[nn.Linear, Shown]:
    """Take six steps; return the model and what was shown."""
    torch.manual_seed(0)
    model, taken, shown = nn.Linear(3, 2), [0], Shown()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def show(step: int, found: Mapping[str, Histogram]) -> None:
        shown[step] = found
        if ill:
            raise MemoryError("no room")

    if every:
        watch(model, optimizer, every=every, step=lambda: taken[0] + 1, show=show)
    for step in range(6):
        taken[0] = step
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model, shown


def test_they_are_shown_at_each_so_many_steps_and_change_nothing() -> None:
    watched, shown = train(2)
    assert list(shown) == [2, 4, 6]
    assert set(shown[2]) == {"gradients/weight", "gradients/bias"}
    assert sum(shown[2]["gradients/weight"][0]) == 6
    for name, value in train()[0].state_dict().items():
        assert torch.equal(value, watched.state_dict()[name])


def test_what_goes_wrong_is_said_once_and_costs_no_step(caplog: pytest.LogCaptureFixture) -> None:
    watched, shown = train(2, ill=True)
    assert list(shown) == [2]
    assert [r.getMessage() for r in caplog.records] == [
        "no more gradients are shown (no room); training and the run's own files are not affected"
    ]
    assert torch.equal(train()[0].weight, watched.weight)


@pytest.mark.parametrize(
    ("values", "count", "low", "high"),
    [
        ([0.0, 1.0, 2.0, float("nan"), float("inf")], 3, 0, 2),
        ([5.0, 5.0], 2, 4, 6),
        ([float("nan")], 0, 0, 0),
        ([], 0, 0, 0),
    ],
)
def test_a_histogram_counts_every_finite_value(
    values: list[float], count: int, low: float, high: float
) -> None:
    counts, edges = histogram(torch.tensor(values, dtype=torch.bfloat16))
    assert sum(counts) == count
    assert len(edges) == len(counts) + 1
    assert (edges[0], edges[-1]) == (low, high)


FOUND: Mapping[str, Histogram] = {"gradients/weight": ([1, 0, 2], [-1.0, 0.0, 1.0, 2.0])}


def tell(logger: Logger, folder: Path) -> None:
    """Show one histogram at one step."""
    logger.start(run_info(folder))
    logger.histograms(7, FOUND)
    logger.log(7, {"train/loss": 1.0})
    logger.finish("finished", {})


def test_w_and_b_has_them_at_their_step(tmp_path: Path) -> None:
    tell(Wandb(mode="offline"), tmp_path / "run")
    [row] = [r["history"]["item"] for r in inspect(tmp_path / "run") if r["type"] == "history"]
    assert row["gradients/weight.values"] == [1, 0, 2]
    assert (row["_step"], row["train/loss"]) == (7, 1.0)


def test_tensorboard_has_them_at_their_step(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tell(TensorBoard(), tmp_path / "run")
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    [event] = events.Histograms("gradients/weight")
    assert (event.step, event.histogram_value.num) == (7, 3)


def test_less_than_never_is_refused() -> None:
    with pytest.raises(RequestError, match="logger.gradients=-1"):
        Logger(gradients=-1)
