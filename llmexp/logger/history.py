"""Read back what a run has written, for a logger that has to show it again after a resume."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STEP = "train/global_step"


def rows_by_step(file: Path, last_step: int) -> dict[int, list[dict[str, Any]]]:
    """Return the rows of a .jsonl file up to `last_step`, in order; a half-written one is left out.

    A file that does not exist has no rows.
    """
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in _rows(file):
        step = row.pop(STEP, None)
        if isinstance(step, int) and step <= last_step:
            steps.setdefault(step, []).append(row)
    return dict(sorted(steps.items()))


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a row; those that are not finite are written as text."""
    found = {}
    for name, value in row.items():
        if isinstance(value, (int, float)) or value in ("nan", "inf", "-inf"):
            found[name] = float(value)
    return found


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
