"""A JSON-lines file that only grows: one row per line, whole lines only, cut back on resume."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from llmexp.durable import disk
from llmexp.durable.files import encode, write_bytes
from llmexp.errors import RunError


class JsonLines:
    """Append rows to a file; a line that a kill cut in half is removed when the file is opened."""

    def __init__(self, path: Path, step_key: str = "train/global_step") -> None:
        self.path = path
        self._step_key = step_key
        self._open()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; raises RunError when the disk refuses it, the rows before it whole."""
        line = encode(row) + b"\n"
        size = self._size()
        try:
            disk.write(self._file, line)
        except OSError as error:
            raise self._refused(error, size) from error

    def sync(self) -> None:
        """Wait until every row is on the disk; raises RunError."""
        try:
            disk.sync(self._file)
        except OSError as error:
            raise self._refused(error, self._size()) from error

    def truncate_to(self, step: int) -> int:
        """Drop the rows after `step` and keep the rest to the byte; return how many lines went.

        Raises RunError when a line that stays is damaged.
        """
        lines = self.path.read_bytes().splitlines(keepends=True)
        rows = [_parse(line) for line in lines]
        kept = 0
        for number, row in enumerate(rows, start=1):
            if row is not None and row[self._step_key] <= step:
                kept = number
        if None in rows[:kept]:
            number = rows.index(None) + 1
            raise RunError(
                f"{self.path}:{number}: damaged line, before step {step}: "
                "this file is the truth about the run. Repair it, or begin a new run."
            )
        if kept < len(lines):
            self.close()
            write_bytes(self.path, b"".join(lines[:kept]))
            self._open()
        return len(lines) - kept

    def close(self) -> None:
        """Close the file without waiting for the disk."""
        self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        self._file = disk.open_end(self.path)
        disk.sync_path(self.path.parent)
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            disk.truncate(self._file, whole)

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _refused(self, error: OSError, size: int) -> RunError:
        with contextlib.suppress(OSError):  # opening the file cuts a half line anyway
            disk.truncate(self._file, size)
        return RunError(
            f"{self.path}: {error.strerror}. The run stops so that no row is missing; "
            "make room or mend the disk, then resume it."
        )


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a JSON-lines file, and how many damaged or half-written ones it has."""
    rows = [_parse(line) for line in path.read_bytes().splitlines(keepends=True)]
    whole = [row for row in rows if row is not None]
    return whole, len(rows) - len(whole)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if line.endswith(b"\n") and isinstance(row, dict) else None
