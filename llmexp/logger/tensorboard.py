"""TensorBoard: the same numbers as event files, in <run folder>/tensorboard."""

import importlib.util
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmexp.errors import RequestError
from llmexp.logger import Histogram, Logger, RunInfo
from llmexp.logger.redact import redact
from llmexp.logger.worker import Call, Worker, reason

log = logging.getLogger("llmexp")

CLOSE_SECONDS = 30


class TensorBoard(Logger):
    """Write event files; look at them with `tensorboard --logdir`."""

    _worker: Worker | None = None
    _writer: Any = None
    _last_step = 0

    def check(self) -> None:
        """Refuse to begin where the tensorboard package is missing."""
        if importlib.util.find_spec("tensorboard") is None:
            raise RequestError(
                "logger=tensorboard needs a package that is not installed: pip install tensorboard"
            )

    def start(self, info: RunInfo) -> None:
        """Open the event file."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception as error:  # a package that does not fit the others
            log.warning(f"TensorBoard: off, it cannot be imported ({reason(error)})")
            return
        folder = info.dir / "tensorboard"
        self._worker = Worker("TensorBoard", vital=("start", "metrics"))
        self._worker.submit("start", lambda: self._open(SummaryWriter, folder, info))
        log.info(f"TensorBoard: {folder}; to look at it: tensorboard --logdir {folder}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the numbers of one step."""
        row = dict(metrics)
        self._submit("metrics", lambda: self._write(step, row))

    def histograms(self, step: int, found: Mapping[str, Histogram]) -> None:
        """Show how the values of some tensors are spread."""
        self._submit("histograms", lambda: self._spread(step, found))

    def samples(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Show generated texts under the Text tab."""
        text = "\n\n".join("\n".join(f"    {line}" for line in _lines(row)) for row in rows)
        self._submit("samples", lambda: self._writer.add_text("samples", text, step))

    def media(self, name: str, path: Path) -> None:
        """Show a picture (.png) or a text (.md) at the last step."""
        self._submit(name, lambda: self._read(name, path))

    def finish(self, state: str, summary: Mapping[str, object]) -> None:
        """Write how the run ended, and close the event file."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close(lambda: self._close(_code({"state": state, **summary})))
            worker.join(CLOSE_SECONDS)

    def _submit(self, feature: str, call: Call) -> None:
        if self._worker is not None:
            self._worker.submit(feature, call)

    # everything below runs on the worker

    def _open(self, writer: Callable[..., Any], folder: Path, info: RunInfo) -> None:
        resumed = info.resumed_from_step
        # what an older event file holds beyond the resume point is hidden
        self._writer = writer(
            str(folder), purge_step=None if resumed is None else resumed + 1, flush_secs=10
        )
        self._writer.add_text("config", _code(info.config), 0)

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._last_step = max(self._last_step, step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def _spread(self, step: int, found: Mapping[str, Histogram]) -> None:
        for name, (counts, edges) in found.items():
            middles = [(low + high) / 2 for low, high in pairwise(edges)]
            weighed = list(zip(counts, middles, strict=True))
            self._writer.add_histogram_raw(
                name,
                min=edges[0],
                max=edges[-1],
                num=sum(counts),
                sum=sum(count * value for count, value in weighed),
                sum_squares=sum(count * value**2 for count, value in weighed),
                bucket_limits=edges[1:],
                bucket_counts=counts,
                global_step=step,
            )

    def _close(self, summary: str) -> None:
        if self._writer is not None:
            self._writer.add_text("summary", summary, self._last_step)
            self._writer.close()

    def _read(self, name: str, path: Path) -> None:
        if path.suffix == ".png":
            from matplotlib.image import imread

            self._writer.add_image(name, imread(path), self._last_step, dataformats="HWC")
        else:
            self._writer.add_text(name, path.read_text(encoding="utf-8"), self._last_step)


def _lines(row: Mapping[str, str]) -> list[str]:
    return [line for name, text in row.items() for line in f"{name}: {text}".splitlines()]


def _code(value: object) -> str:
    text = json.dumps(redact(value), indent=2, ensure_ascii=False)
    return "\n".join(f"    {line}" for line in text.splitlines())
