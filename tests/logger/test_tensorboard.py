"""TensorBoard: the same numbers as event files."""

import sys
from pathlib import Path
from typing import Any

import pytest
from toy_run import cut, run_info, train, train_step

from llmexp.errors import RequestError
from llmexp.logger.tensorboard import TensorBoard


def test_a_missing_package_is_refused_with_the_line_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(RequestError, match="pip install tensorboard"):
        TensorBoard()


def _read(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_numbers_texts_and_pictures_are_in_the_event_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from matplotlib.image import imsave

    folder = tmp_path / "run"
    logger, info = TensorBoard(), run_info(folder)
    imsave(folder / "loss.png", [[0.0, 1.0]])
    logger.start(info)
    for step in range(1, 6):
        train_step(logger, folder, step)
    logger.media("loss.png", folder / "loss.png")
    logger.finish("finished", {"best/eval_loss": 2.0})
    seen = _read(folder)
    assert [event.step for event in seen.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert seen.Scalars("eval/loss")[0].value == pytest.approx(2.5)
    assert {"config/text_summary", "samples/text_summary", "summary/text_summary"} <= set(
        seen.Tags()["tensors"]
    )
    assert seen.Tags()["images"] == ["loss.png"]


def test_a_resumed_run_shows_no_step_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    train(TensorBoard(), run_info(folder), range(1, 13))
    cut(folder, 8)
    train(TensorBoard(), run_info(folder, resumed_from_step=8), range(9, 16))
    steps = [event.step for event in _read(folder).Scalars("train/loss")]
    assert steps == list(range(1, 16))
