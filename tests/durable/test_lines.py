"""A JSON-lines file only grows, by whole lines, and is cut to a step without another change."""

import itertools
import os
import resource
from pathlib import Path

import pytest

from llmexp.durable import JsonLines, faults, read_lines
from llmexp.errors import RunError

ROWS = [{"train/global_step": step, "train/loss": 1 / step} for step in range(1, 6)]


def written(path: Path, count: int = 5) -> bytes:
    with JsonLines(path) as lines:
        for row in ROWS[:count]:
            lines.append(row)
    return path.read_bytes()


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path)
    with JsonLines(path) as lines:
        lines.append({"text": "ä\n\r\u2028", "nan": float("inf")})
    rows, damaged = read_lines(path)
    assert rows == [*ROWS, {"text": "ä\n\r\u2028", "nan": float("inf")}]
    assert damaged == 0


def test_a_half_line_is_skipped_counted_and_cut(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole")
    second_last = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for size in range(second_last + 1, len(whole)):
        path = tmp_path / str(size)
        path.write_bytes(whole[:size])
        assert read_lines(path) == (ROWS[:4], 1)
        with JsonLines(path) as lines:
            lines.append(ROWS[4])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("step", range(7))
def test_cutting_keeps_every_byte_before(tmp_path: Path, step: int) -> None:
    path = tmp_path / "metrics.jsonl"
    expected = written(tmp_path / "short", count=min(step, 5))
    whole = written(path)
    with JsonLines(path) as lines:
        assert lines.truncate_to(step) == max(5 - step, 0)
        assert path.read_bytes() == expected
        for row in ROWS[step:]:
            lines.append(row)
    assert path.read_bytes() == whole


def test_several_rows_of_one_step_stay_together(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "samples", step_key="step") as lines:
        for step in (1, 1, 2, 2):
            lines.append({"step": step})
        assert lines.truncate_to(1) == 2
    assert read_lines(tmp_path / "samples")[0] == [{"step": 1}, {"step": 1}]


def test_zeros_after_the_step_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = written(path, count=3)
    path.write_bytes(whole + bytes(40) + b"\n" + bytes(40))
    with JsonLines(path) as lines:
        assert lines.truncate_to(3) == 1
    assert path.read_bytes() == whole


def test_damage_before_the_step_is_an_error_that_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    damaged = written(path).replace(b'"train/global_step": 2', b'"train/global_step": \0')
    path.write_bytes(damaged)
    with JsonLines(path) as lines, pytest.raises(RunError, match=r"metrics.jsonl:2: damaged line"):
        lines.truncate_to(4)
    assert path.read_bytes() == damaged
    assert read_lines(path) == ([ROWS[0], *ROWS[2:]], 1)


def test_a_fault_at_any_operation_loses_no_synced_row(tmp_path: Path) -> None:
    numbers = itertools.count()

    def prepare() -> Path:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        written(folder / "metrics.jsonl", count=3)
        return folder / "metrics.jsonl"

    def work(path: Path) -> None:
        with JsonLines(path) as lines:
            lines.truncate_to(2)
            lines.append(ROWS[2])
            lines.sync()
            lines.append(ROWS[3])
            lines.append(ROWS[4])

    whole = written(tmp_path / "whole")
    for trial, path in faults.trials(prepare, work):
        found = read_lines(path)[0]
        assert found == ROWS[: len(found)], trial
        assert len(found) >= 2, trial
        with JsonLines(path) as lines:
            lines.truncate_to(2)
            for row in ROWS[2:]:
                lines.append(row)
        assert path.read_bytes() == whole, trial


def test_a_full_disk_is_a_loud_error_and_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = written(path, count=3)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            lines = JsonLines(path)
            limit = len(whole) + 10  # in the middle of the next row
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with pytest.raises(RunError, match=r"metrics.jsonl: File too large. The run stops"):
                lines.append(ROWS[3])
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_bytes() == whole
