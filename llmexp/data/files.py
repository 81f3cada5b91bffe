"""The bytes of a data file: found by path or glob, opened by what they are, whatever the name."""

import difflib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import IO, Any

from llmexp.data.kinds import GZIP, HEAD, UTF8_BOM, ZSTD, refusal
from llmexp.errors import RequestError

NEEDS_DATA_EXTRA = "install it with: pip install 'llmexp[data]'"
CR_ALONE = (
    "it has carriage returns (CR) within the line, and a line ends at LF or CRLF. If they are "
    "meant to end lines, convert the file: tr '\\r' '\\n' < FILE > FILE.lf"
)
DAMAGE = (EOFError, zlib.error, OSError)  # what unpacking a damaged file raises


def find(paths: list[str], *, key: str, is_text: bool) -> tuple[list[Path], list[str]]:
    """Return the files that paths and globs name, and what is wrong with them.

    is_text: they are read as lines, so that a file of another kind is a mistake.
    """
    files: list[Path] = []
    mistakes: list[str] = []
    for path in paths:
        expanded = Path(os.path.expanduser(path))
        if os.path.exists(expanded):  # Path.exists raises on a name that is too long
            matches = [expanded]
        else:
            matches = sorted(Path(match) for match in glob(str(expanded), recursive=True))
            matches = [match for match in matches if match.is_file()]
        if not matches:
            mistakes.append(_missing(path, key))
        for match in matches:
            named = f"{key}={path}" if match == expanded else f"{match}, found by {key}={path},"
            mistake = _refusal(match, named, is_text=is_text)
            files.append(match)
            mistakes += [mistake] if mistake else []
    return files, mistakes


def _missing(path: str, key: str) -> str:
    if any(character in path for character in "*?["):
        return f"{key}={path} matches no file: check the pattern (relative to {Path.cwd()})"
    close = _nearest(os.path.expanduser(path))
    meant = f" (did you mean {close}?)" if close else ""
    return (
        f"{key}={path} does not exist{meant}: give the path of a file you have, "
        f"absolute or relative to {Path.cwd()}"
    )


def _nearest(path: str) -> str | None:
    folder, name = os.path.split(path)
    try:
        others = set(os.listdir(folder or ".")) - {name}  # a dangling link has the very name
        close = difflib.get_close_matches(name, others, 1, 0.75)
    except (OSError, ValueError):  # no such folder, or no name of one
        return None
    return os.path.join(folder, close[0]) if close else None


def _refusal(path: Path, named: str, *, is_text: bool) -> str | None:
    if path.is_dir():
        return f"{named} is a folder: name its files, for example '{path}/*'"
    if not path.is_file():
        return f"{named} is not a regular file: copy its content to a file first"
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        return f"{named} cannot be read: {error.strerror}. Change its permissions, or copy it"
    if is_empty:
        return f"{named} is empty (0 bytes): give a file with text"
    return _foreign(path) if is_text else None


def _foreign(path: Path) -> str | None:
    try:
        with opened(path):
            return None
    except RequestError as error:
        return str(error)
    except DAMAGE as error:
        return damaged(path, error, 0)


def damaged(path: Path, error: Exception, lines: int) -> str:
    """Say that a file could not be read to its end."""
    return f"{path}: damaged or cut off ({error}), {lines:,} lines could be read: fetch it again"


class Opened:
    """A file's content as bytes, unpacked, past its byte-order mark.

    Raises RequestError where it is no text.
    """

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        self._raw = raw
        self._content: Any = _unpacked(path, raw)
        head: bytes = self._content.read1(HEAD)  # what a cut off file still gives
        reason = refusal(head, path)
        if reason is not None:
            raise RequestError(f"{path} {reason}")
        self._held: bytes = head.removeprefix(UTF8_BOM)

    @property
    def position(self) -> int:
        """Bytes of the file on disk that have been read."""
        return self._raw.tell()

    def readline(self, limit: int) -> bytes:
        """Return the bytes up to and with the next line feed, at most `limit`; b"" at the end."""
        if not self._held:
            return bytes(self._content.readline(limit))
        held, self._held = self._held, b""
        line, feed, rest = held.partition(b"\n")
        if feed:
            self._held = rest
            return line + feed
        return held + bytes(self._content.readline(limit - len(held)))


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a plain, gzip or Zstandard file."""
    with path.open("rb") as raw:
        yield Opened(path, raw)


def _unpacked(path: Path, raw: IO[bytes]) -> Any:
    magic = raw.read(4)
    raw.seek(0)
    if magic.startswith(GZIP):
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if magic == ZSTD:
        return _zstd(path, raw)
    return raw


def _zstd(path: Path, raw: IO[bytes]) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise RequestError(
            f"{path} is a Zstandard file, and reading it needs pyarrow: {NEEDS_DATA_EXTRA}, "
            "or unpack it with zstd -d"
        ) from error
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
    return io.BufferedReader(stream, 1 << 20)
