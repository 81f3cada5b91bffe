"""Files of records: JSON lines, tables and Parquet become dictionaries, one at a time."""

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmexp.data.files import CR_ALONE, NEEDS_DATA_EXTRA
from llmexp.data.text import Line, Notes, TextOptions, lines
from llmexp.errors import RequestError

ROWS = 256  # of a Parquet file that are in memory at once
DELIMITERS = ",\t;"
CELL = 1 << 26  # characters: more than a book, and what an unclosed quote may swallow
BETWEEN = re.compile(r"[ \t\r\n,]*")  # what separates the items of an array
LONGEST_WORD = 16  # characters of a JSON word or escape that a cut may fall into


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
            fields = json.loads(text, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            cure = CR_ALONE if "\r" in text else "write one object per line"
            raise RequestError(
                f"{path}:{number}: this line is not JSON ({error}): {cure}"
            ) from None
        yield _checked(f"{path}:{number}", fields)


def _whole(source: Iterator[Line]) -> Iterator[tuple[int, str]]:
    parts: list[str] = []
    for line in source:
        parts.append(line.text)
        if line.ends:
            yield line.number, "".join(parts)
            parts = []


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        repeated = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {repeated!r} occurs more than once in an object")
    return fields


def _checked(where: str, fields: object) -> Record:
    if not isinstance(fields, dict):
        raise RequestError(
            f'{where}: expected a JSON object such as {{"text": "..."}}, found '
            f"{type(fields).__name__}"
        )
    return Record(where, fields)


def _json_array(path: Path, source: Iterator[Line]) -> Iterator[Record]:
    """Read the objects of an array, few of them in memory at once, however the lines fall."""
    decode = json.JSONDecoder(object_pairs_hook=_object).raw_decode
    held, number = _more(source, 1), 1
    start = held.index("[") + 1
    while True:
        start = next(BETWEEN.finditer(held, start)).end()
        if held.startswith("]", start):
            return _refuse_more(path, held[start + 1 :], source)
        try:
            fields, end = decode(held, start)
        except (ValueError, RecursionError) as error:
            more = _more(source, len(held) - start + 1) if _is_cut_off(error, held) else ""
            if not more:
                raise RequestError(
                    f"{path}: item {number:,} of this JSON array cannot be read ({error}): "
                    "write one object per line"
                ) from None
            held, start = held[start:] + more, 0
            continue
        yield _checked(f"{path}:item {number}", fields)
        start, number = end, number + 1


def _refuse_more(path: Path, rest: str, source: Iterator[Line]) -> None:
    for text in itertools.chain([rest], (line.text for line in source)):
        if text.strip():
            raise RequestError(
                f"{path}: the JSON array ends before {text.strip()!r:.60}: write one array, or one "
                "object per line"
            )


def _more(source: Iterator[Line], characters: int) -> str:
    """Return the next so many characters, in whole lines or pieces; "" at the end."""
    parts: list[str] = []
    while characters > 0 and (line := next(source, None)):
        parts.append(line.text + "\n" if line.ends else line.text)
        characters -= len(parts[-1])
    return "".join(parts)


def _is_cut_off(error: Exception, text: str) -> bool:
    """Tell whether more text may mend a decoding error."""
    return isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated string") or len(text) - error.pos < LONGEST_WORD
    )


def table_records(path: Path, options: TextOptions, notes: Notes) -> Iterator[Record]:
    """Read a table with a header line; its delimiter is the one the header has most of.

    Raises RequestError with file and line where a row does not fit the header.
    """
    csv.field_size_limit(CELL)
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
                columns = _distinct(row, f"{path}:{reader.line_num}")
            elif len(row) != len(columns):
                raise RequestError(
                    f"{path}:{reader.line_num}: {len(row)} cells under a header of {len(columns)}: "
                    'put cells that hold a delimiter or a line end in "quotes"'
                )
            else:
                yield Record(f"{path}:{reader.line_num}", dict(zip(columns, row, strict=True)))
    except csv.Error as error:
        cure = (
            CR_ALONE
            if "new-line character" in str(error)
            else 'put cells that hold quotes or line ends in "quotes", and double the quotes inside'
        )
        raise RequestError(
            f"{path}:{reader.line_num}: this row cannot be read ({error}): {cure}"
        ) from None


def _distinct(columns: list[str], where: str) -> list[str]:
    repeated = sorted(name for name, count in Counter(columns).items() if count > 1 and name)
    if repeated:
        raise RequestError(
            f"{where}: {', '.join(map(repr, repeated))} names more than one column, and only one "
            "can be read: give each column a name of its own"
        )
    return columns


def parquet_records(path: Path, notes: Notes) -> Iterator[Record]:
    """Read the rows of a Parquet file. Raises RequestError where that is not possible."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RequestError(f"data=parquet needs pyarrow: {NEEDS_DATA_EXTRA}") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _distinct(file.schema_arrow.names, str(path))
            size, before, number = path.stat().st_size, notes.position, 0
            for batch in file.iter_batches(batch_size=ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}:row {number}", fields)
                notes.position = before + size * number // file.metadata.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RequestError(
            f"{path} cannot be read as Parquet ({reason:.200}): fetch or write it again"
        ) from error
