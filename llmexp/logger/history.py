"""Read back what a run has written, for a logger that has to show it again after a resume."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def logged_metrics(file: Path, last_step: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (step, metrics) in order, up to `last_step`, from `file` and timing.jsonl beside it."""
    steps: dict[int, dict[str, float]] = {}
    for source in (file, file.with_name("timing.jsonl")):
        for row in _rows(source, last_step):
            metrics = {name: value for name, value in row.items() if "/" in name}
            steps.setdefault(_step(row), {}).update(metrics)
    yield from sorted(steps.items())


def logged_samples(file: Path, last_step: int) -> Iterator[tuple[int, list[dict[str, str]]]]:
    """Yield (step, rows) in order of step up to `last_step`, from samples.jsonl."""
    steps: dict[int, list[dict[str, str]]] = {}
    for row in _rows(file, last_step):
        texts = {name: value for name, value in row.items() if isinstance(value, str)}
        steps.setdefault(_step(row), []).append(texts)
    yield from sorted(steps.items())


def _rows(file: Path, last_step: int) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    for line in file.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a killed run may be half a line
            continue
        if isinstance(row, dict) and 0 <= _step(row) <= last_step:
            yield row


def _step(row: dict[str, Any]) -> int:
    return int(row.get("step", row.get("train/global_step", -1)))
