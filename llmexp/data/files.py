"""The bytes of a data file: found by path or glob, opened by what they are, whatever the name."""

import gzip
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import IO, Any

from llmexp.errors import RequestError

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
UTF8_BOM = b"\xef\xbb\xbf"
# utf-32 first: its little-endian mark begins with that of utf-16
WIDE_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
NEEDS_DATA_EXTRA = "install it with: pip install 'llmexp[data]'"


def find(paths: list[str], *, key: str) -> tuple[list[Path], list[str]]:
    """Return the files that paths and globs name, and what is wrong with them."""
    files: list[Path] = []
    mistakes: list[str] = []
    for path in paths:
        expanded = Path(path).expanduser()
        if os.path.exists(expanded):  # Path.exists raises on a name that is too long
            matches = [expanded]
        else:
            matches = sorted(Path(match) for match in glob(str(expanded), recursive=True))
            matches = [match for match in matches if match.is_file()]
        if not matches:
            mistakes.append(_missing(path, key))
        for match in matches:
            mistake = _refusal(match, f"{key}={path}")
            files.append(match)
            mistakes += [mistake] if mistake else []
    return files, mistakes


def _missing(path: str, key: str) -> str:
    if any(character in path for character in "*?["):
        return f"{key}={path} matches no file: check the pattern (relative to {Path.cwd()})"
    return (
        f"{key}={path} does not exist: give the path of a file you have, "
        f"absolute or relative to {Path.cwd()}"
    )


def _refusal(path: Path, named: str) -> str | None:
    if path.is_dir():
        return f"{named} is a folder: name its files, for example '{path}/*'"
    if not path.is_file():
        return f"{named} is not a regular file: copy its content to a file first"
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        return f"{named} cannot be read: {error.strerror}. Change its permissions, or copy it"
    return f"{named} is empty (0 bytes): give a file with text" if is_empty else None


class Opened:
    """A file's content as bytes, unpacked, past its byte-order mark."""

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        self._raw = raw
        self._content: Any = _unpacked(path, raw)
        head: bytes = self._content.read(4)
        for mark, name in WIDE_BOMS.items():
            if head.startswith(mark):
                raise RequestError(
                    f"{path} looks like {name}: convert it with "
                    f"iconv -f {name} -t UTF-8 '{path}' > '{path.name}.utf8'"
                )
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
