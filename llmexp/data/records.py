"""Files of records: JSON lines, tables and Parquet become dictionaries, one at a time."""

import csv
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmexp.data.files import NEEDS_DATA_EXTRA
from llmexp.data.text import Line, Notes, TextOptions, lines
from llmexp.errors import RequestError

ROWS = 256  # of a Parquet file that are in memory at once
DELIMITERS = ",\t;"
_BETWEEN = re.compile(r"[\s,]*")


class Record(NamedTuple):
    """One record, and where a person finds it."""

    where: str  # file:line
    fields: dict[str, Any]


def json_records(path: Path, options: TextOptions, notes: Notes) -> Iterator[Record]:
    """Read JSON lines, or one JSON array of objects. Raises RequestError with file and line."""
    source = lines(path, options, notes)
    for line in source:
        if line.text and not line.text.isspace():
            source = itertools.chain([line], source)
            is_array = line.text.lstrip().startswith("[")
            return _json_array(path, source) if is_array else _json_lines(path, source, notes)
        notes.blank += 1
    return iter(())


def _json_lines(path: Path, source: Iterator[Line], notes: Notes) -> Iterator[Record]:
    for number, text in _whole(source):
        if not text or text.isspace():
            notes.blank += 1
            continue
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"{path}:{number}: this line is not JSON ({error}): write one object per line"
            ) from None
        yield _checked(path, number, fields)


def _whole(source: Iterator[Line]) -> Iterator[tuple[int, str]]:
    parts: list[str] = []
    for line in source:
        parts.append(line.text)
        if line.ends:
            yield line.number, "".join(parts)
            parts = []


def _checked(path: Path, number: int, fields: object) -> Record:
    if not isinstance(fields, dict):
        raise RequestError(
            f"{path}:{number}: expected a JSON object such as "
            f'{{"text": "..."}}, found {type(fields).__name__}'
        )
    return Record(f"{path}:{number}", fields)


def _json_array(path: Path, source: Iterator[Line]) -> Iterator[Record]:
    """Read the objects of an array, a few of them in memory, however the lines fall."""
    decode = json.JSONDecoder().raw_decode
    line = next(source)
    held, start = _text(line).lstrip()[1:], 0
    while True:
        start = _end_of_match(held, start)
        if held.startswith("]", start):
            return
        try:
            fields, end = decode(held, start)
        except (ValueError, RecursionError) as error:
            following = next(source, None)
            if following is None:
                raise RequestError(
                    f"{path}:{line.number}: this JSON array cannot be read ({error}): "
                    "write one object per line"
                ) from None
            line, held, start = following, held[start:] + _text(following), 0
            continue
        yield _checked(path, line.number, fields)
        start = end


def _text(line: Line) -> str:
    return line.text + "\n" if line.ends else line.text


def _end_of_match(text: str, start: int) -> int:
    match = _BETWEEN.match(text, start)
    return match.end() if match else start


def table_records(path: Path, options: TextOptions, notes: Notes) -> Iterator[Record]:
    """Read a table with a header line; its delimiter is the one the header has most of.

    Raises RequestError with file and line where a row does not fit the header.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a cell may be a whole book
    source = (text + "\n" for _, text in _whole(lines(path, options, notes)))
    head: list[str] = []
    for text in source:
        head.append(text)
        if not text.isspace():
            break
    delimiter = max(DELIMITERS, key="".join(head).count)
    reader = csv.reader(itertools.chain(head, source), delimiter=delimiter, strict=True)
    columns: list[str] = []
    try:
        for row in reader:
            if not any(cell and not cell.isspace() for cell in row):
                notes.blank += 1
            elif not columns:
                columns = row
            elif len(row) != len(columns):
                raise RequestError(
                    f"{path}:{reader.line_num}: {len(row)} cells under a header of {len(columns)}: "
                    'put cells that hold a delimiter or a line end in "quotes"'
                )
            else:
                yield Record(f"{path}:{reader.line_num}", dict(zip(columns, row, strict=True)))
    except csv.Error as error:
        raise RequestError(
            f"{path}:{reader.line_num}: this row cannot be read ({error}): "
            'put cells that hold quotes or line ends in "quotes", and double the quotes inside'
        ) from None


def parquet_records(path: Path, notes: Notes) -> Iterator[Record]:
    """Read the rows of a Parquet file. Raises RequestError where pyarrow is missing or cannot read it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RequestError(f"data=parquet needs pyarrow: {NEEDS_DATA_EXTRA}") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            size, before, number = path.stat().st_size, notes.position, 0
            for batch in file.iter_batches(batch_size=ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}:row {number}", fields)
                notes.position = before + size * number // file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}): fetch it again"
        ) from error
