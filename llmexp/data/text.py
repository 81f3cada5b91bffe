"""Text files: bytes to lines, lines to documents, by one table for every format.

A line ends at LF or CRLF and nowhere else: a lone CR, VT, FF, U+0085 or U+2028 is part of the text.
Nothing here holds more than a few megabytes, however long a line or a file is.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llmexp.data.files import DAMAGE, damaged, opened
from llmexp.errors import RequestError

PIECE = 1 << 18  # bytes or characters handed on at once
TOLD = 256  # lines between two looks at the position in the file
HUGE = 10_000_000  # bytes of a line that is worth a warning
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # all of C0 but tab, LF and CR, and DEL


@dataclass(frozen=True)
class TextOptions:
    """How bytes become text."""

    encoding_errors: str  # strict | replace | skip
    drop_control: bool


@dataclass
class Notes:
    """What was met while reading: the counts behind the warnings of the data report."""

    position: int = 0  # bytes on disk that have been read
    blank: int = 0  # lines or records with nothing but white space; left out
    nul: int = 0  # lines with a NUL
    undecodable: int = 0  # lines with invalid UTF-8; replaced or left out
    huge: int = 0  # lines of more than 10 MB

    def counts(self) -> dict[str, int]:
        """Return the counts by name."""
        return {name: value for name, value in asdict(self).items() if name != "position"}


class Line(NamedTuple):
    """A line, or a piece of a longer one."""

    number: int  # counted from 1
    text: str
    ends: bool  # the line ends here


class Piece(NamedTuple):
    """An example's text, or a piece of a longer one."""

    text: str
    ends: bool  # the example ends here


def lines(path: Path, options: TextOptions, notes: Notes) -> Iterator[Line]:
    """Read the lines of a file that may be packed; blank ones too.

    Raises RequestError with file, line and byte where the bytes are no UTF-8.
    """
    offset = 0  # bytes of the line that were handed on
    for number, raw, ends in _raw_lines(path, notes):
        text = _decoded(raw, options, notes, path=path, number=number, offset=offset)
        if text is not None or offset:
            yield Line(number, text or "", ends)
        offset += len(raw)
        if ends:
            notes.huge += offset > HUGE
            offset = 0


def _raw_lines(path: Path, notes: Notes) -> Iterator[tuple[int, bytes, bool]]:
    before, number, held, ends = notes.position, 0, b"", True
    try:
        with opened(path) as file:
            while read := file.readline(PIECE):
                if ends:
                    number += 1
                    if number % TOLD == 0:
                        notes.position = before + file.position
                raw, ends = held + read, len(read) < PIECE or read.endswith(b"\n")
                raw, held = (_without_line_end(raw), b"") if ends else _cut(raw)
                yield number, raw, ends
    except DAMAGE as error:
        raise RequestError(damaged(path, error, number)) from error
    if not ends:  # the file ended on a piece of just that size
        yield number, held, True
    notes.position = before + path.stat().st_size


def _without_line_end(raw: bytes) -> bytes:
    if not raw.endswith(b"\n"):
        return raw
    return raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]


def _cut(raw: bytes) -> tuple[bytes, bytes]:
    """Cut before the last run of blanks, where a tokenizer cuts too, or between characters."""
    blank = max(raw.rfind(b" "), raw.rfind(b"\t"))
    head = raw[: blank + 1].rstrip(b" \t\r")
    if len(head) < len(raw) // 2:
        head = raw[: len(raw) - _unfinished(raw)]
    return head, raw[len(head) :]


def _unfinished(raw: bytes) -> int:
    """Count the bytes at the end that belong to what follows: of a character, or of CRLF."""
    if raw.endswith(b"\r"):
        return 1
    for count in range(1, min(4, len(raw) + 1)):
        byte = raw[-count]
        if byte & 0b1100_0000 != 0b1000_0000:  # not a continuation byte
            length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return count if length > count else 0
    return 0


def _decoded(
    raw: bytes, options: TextOptions, notes: Notes, *, path: Path, number: int, offset: int
) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        if options.encoding_errors == "strict":
            raise RequestError(
                f"{path}:{number}: invalid UTF-8 at byte {offset + error.start + 1}: convert the "
                "file (iconv -f LATIN1 -t UTF-8), or set data.encoding_errors=replace or skip"
            ) from None
        notes.undecodable += 1
        if options.encoding_errors == "skip":
            return None
        return raw.decode(errors="replace")


def cleaned(value: Any, options: TextOptions, notes: Notes) -> Any:
    """Treat every text in a record as a line of a text file is treated.

    Raises UnicodeEncodeError on half a surrogate pair, which JSON can hold and UTF-8 cannot.
    """
    if isinstance(value, str):
        value = value if value.isascii() else _encodable(value, options, notes)
        if "\0" in value:
            notes.nul += 1
        return CONTROL.sub("", value) if options.drop_control else value
    if isinstance(value, list):
        return [cleaned(entry, options, notes) for entry in value]
    if isinstance(value, dict):
        return {name: cleaned(entry, options, notes) for name, entry in value.items()}
    return value


def _encodable(text: str, options: TextOptions, notes: Notes) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        if options.encoding_errors != "replace":
            raise
        notes.undecodable += 1
        return text.encode(errors="replace").decode()
    return text


def pieces(path: Path, example: str, options: TextOptions, notes: Notes) -> Iterator[Piece]:
    """Read the examples of a text file: each line, each paragraph, or the file."""
    source = _cleaned(lines(path, options, notes), options, notes)
    return _line_examples(source, notes) if example == "line" else _documents(source, example)


def _cleaned(source: Iterator[Line], options: TextOptions, notes: Notes) -> Iterator[Line]:
    for line in source:
        text = line.text
        notes.nul += "\0" in text
        yield line._replace(text=CONTROL.sub("", text)) if options.drop_control else line


def _line_examples(source: Iterator[Line], notes: Notes) -> Iterator[Piece]:
    is_start = True
    for line in source:
        if is_start and line.ends and (not line.text or line.text.isspace()):
            notes.blank += 1
            continue
        is_start = line.ends
        yield Piece(line.text, line.ends)


def _documents(source: Iterator[Line], example: str) -> Iterator[Piece]:
    """Join lines with LF; a document begins and ends with a line that is not blank."""
    gap = ""  # the line ends since the last text
    is_start, is_open = True, False
    parts: list[str] = []
    size = 0
    for line in source:
        is_blank = is_start and line.ends and (not line.text or line.text.isspace())
        is_start = line.ends
        if is_blank and is_open and example == "paragraph":
            yield Piece("".join(parts), True)
            parts, size, gap, is_open = [], 0, "", False
        elif is_blank:
            gap += "\n" if is_open and len(gap) < PIECE else ""
        else:
            parts += [gap, line.text]
            size += len(gap) + len(line.text)
            gap, is_open = "\n" if line.ends else "", True
        if size > PIECE:
            text, rest = cut("".join(parts))
            yield Piece(text, False)
            parts, size = [rest], len(rest)
    if is_open:
        yield Piece("".join(parts), True)


def cut(text: str) -> tuple[str, str]:
    """Cut a text before its last run of blanks, where a tokenizer cuts too, if that is near."""
    tail = text[len(text) // 2 :]
    words = tail.rsplit(maxsplit=1)
    if len(words) < 2:
        return text, ""
    head = text[: len(text) // 2] + words[0]
    return head, text[len(head) :]
