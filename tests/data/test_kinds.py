"""What is no text is told as what it is, with what to do; what is text is left alone."""

import bz2
import gzip
import lzma
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llmexp.data import Corpus, Source
from llmexp.errors import RequestError

Make = Callable[..., Corpus]
Load = Callable[..., Source]
LINES = "".join(f"line {number}\n" for number in range(50))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("line", ["one more line", "\u041f\u0440\u0438\u0432\u0435\u0442, \u044f"])
def test_wide_encodings_are_known_without_a_mark(
    source: Load, tmp_path: Path, encoding: str, line: str
) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(f"{line}\n{line} and another\n".encode(encoding))
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    with pytest.raises(RequestError, match=rf"data\.txt looks like {name[:6]} .*iconv -f {name}"):
        source("text", path=str(path))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_wide_line_ends_are_enough(source: Load, tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes("\u4e16\u754c\u4f60\u597d\n".encode(encoding) * 9)
    with pytest.raises(RequestError, match=r"data\.txt looks like UTF-16 without a byte-order"):
        source("text", path=str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * 3000 + b"\nafter a hole\n",
        b"\x1b[31mred\x1b[0m\n" * 30 + b"plain\n",
        b"a\0b\0\0c\n" * 20 + b"d\n",
        "\u4e16\u754c\n".encode() * 20 + b"e\n",
        b"PK is a text, and so is BZh, %PDF and {\n\n{ \n",
    ],
)
def test_text_with_control_characters_stays_text(
    corpus: Make, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    assert corpus("text", path=str(path)).report.documents >= 2


def made(folder: Path, kind: str) -> Path:
    """Write a file of some kind under a name that says nothing."""
    path, text = folder / "data", folder / "text"
    text.write_text(LINES)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(text)
    elif kind == "tar":
        with tarfile.open(path, "w:gz") as tar:
            tar.add(text, "text")
    elif kind == "sqlite":
        with sqlite3.connect(path) as database:
            database.execute("create table t (a)")
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"text": ["a"]}), path)
    else:
        path.write_bytes(
            {
                "bzip2": bz2.compress(LINES.encode()),
                "xz": lzma.compress(LINES.encode()),
                "twice": gzip.compress(gzip.compress(LINES.encode())),
                "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
            }[kind]
        )
    return path


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("parquet", "is a Parquet file: set data=parquet"),
        ("zip", "is a ZIP archive.*: unpack it"),
        ("tar", "is a tar archive: unpack it"),
        ("sqlite", "is an SQLite database: export a table.*data=csv"),
        ("bzip2", "is a bzip2 file: unpack it"),
        ("xz", "is an xz file: unpack it"),
        ("twice", "is packed twice: unpack it once"),
        ("pdf", "is a PDF: extract its text"),
    ],
)
@pytest.mark.parametrize("option", ["text", "jsonl", "csv"])
def test_a_file_that_is_no_text_is_told_by_its_kind(
    source: Load, tmp_path: Path, option: str, kind: str, told: str
) -> None:
    path = made(tmp_path, kind)
    with pytest.raises(RequestError, match=f"{path} {told}"):
        source(option, path=str(path))


def test_every_such_file_of_a_pattern_is_named_at_once(source: Load, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LINES)
    (tmp_path / "b.txt").touch()
    (tmp_path / "c.txt").write_bytes(b"%PDF-1.7\n")
    (tmp_path / "d.txt").write_bytes(b"\x1f\x8bno gzip at all")
    with pytest.raises(RequestError) as told:
        source("text", path=f"{tmp_path}/*.txt")
    for expected in ("3 mistakes", "b.txt, found by", "c.txt is a PDF", "d.txt: damaged or cut"):
        assert expected in str(told.value)


def test_a_damaged_member_of_a_pattern_is_named(corpus: Make, tmp_path: Path) -> None:
    packed = gzip.compress(LINES.encode() * 1000)
    for name in ("a.txt", "c.txt"):
        (tmp_path / name).write_text(LINES)
    (tmp_path / "b.txt").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(RequestError, match=r"b\.txt: damaged or cut off .* [1-9][\d,]+ lines"):
        corpus("text", path=f"{tmp_path}/*.txt")


@pytest.mark.parametrize(
    ("option", "content"),
    [
        ("text", b"one\rtwo\rthree\r"),
        ("csv", b"id,text\r1,one\r2,two\r"),
        ("jsonl", b'{"text": "one"}\r{"text": "two"}\r'),
    ],
)
def test_lines_that_end_in_cr_alone_are_told_as_such(
    source: Load, tmp_path: Path, option: str, content: bytes
) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"data\.txt.*carriage returns.*tr '\\r' '\\n'"):
        source(option, path=str(path))
