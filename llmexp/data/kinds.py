"""What a file is, by its first bytes: text, or something a person took for text."""

import re
from pathlib import Path

import numpy as np

HEAD = 1024  # bytes that tell
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
# which bytes in four are low ones
WIDE = {
    "UTF-32LE": (False, True, True, True),
    "UTF-32BE": (True, True, True, False),
    "UTF-16LE": (False, True, False, True),
    "UTF-16BE": (True, False, True, False),
}
LINE_ENDS = {"UTF-16LE": b"\n\0", "UTF-16BE": b"\0\n"}
# what files that are no text begin with, what they are, and what to do
FOREIGN = tuple(
    (re.compile(magic, re.DOTALL), name, cure)
    for magic, name, cure in (
        (rb"PAR1", "a Parquet file", "set data=parquet"),
        (rb"\x1f\x8b|\x28\xb5\x2f\xfd", "packed twice", "unpack it once (gunzip, zstd -d)"),
        (rb"BZh[1-9]1AY&SY", "a bzip2 file", "unpack it (bunzip2), or pack it with gzip or zstd"),
        (rb"\xfd7zXZ\x00", "an xz file", "unpack it (unxz), or pack it with gzip or zstd"),
        (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it (7z x)"),
        (rb"Rar!\x1a\x07", "a RAR archive", "unpack it (unrar x)"),
        (rb".{257}ustar", "a tar archive", "unpack it (tar xf)"),
        (
            rb"PK\x03\x04",
            "a ZIP archive, as .docx and .xlsx are too",
            "unpack it, or save the document as text or CSV",
        ),
        (
            rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
            "an old Office document",
            "save it as text or CSV",
        ),
        (rb"%PDF-", "a PDF", "extract its text first (pdftotext)"),
        (rb"\{\\rtf", "an RTF document", "save it as plain text"),
        (
            rb"SQLite format 3\x00",
            "an SQLite database",
            "export a table (sqlite3 -header -csv FILE 'select ...') and set data=csv",
        ),
        (rb"ARROW1", "an Arrow file", "write it as Parquet and set data=parquet"),
        (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a", "an image", "give a file with text"),
        (rb".{5}\x00\x00\x00\{\"", "a safetensors file", "give a file with text"),
        (
            rb"\x93NUMPY|\x89HDF|\x80[\x02-\x05]|\x7fELF",
            "a binary file",
            "give a file with text",
        ),
    )
)


def refusal(head: bytes, path: Path) -> str | None:
    """Say what a file is and what to do, given its first bytes; None: it may be text."""
    for mark, name in WIDE_BOMS.items():
        if head.startswith(mark):
            return f"looks like {name}: {_converted(name, path)}"
    for magic, name, cure in FOREIGN:
        if magic.match(head):
            return f"is {name}: {cure}"
    wide = _wide(head)
    if wide:
        return f"looks like {wide[:6]} without a byte-order mark: {_converted(wide, path)}"
    return None


def _converted(encoding: str, path: Path) -> str:
    return f"convert it with iconv -f {encoding} -t UTF-8 '{path}' > '{path.name}.utf8'"


def _wide(head: bytes) -> str | None:
    """Tell UTF-16 and UTF-32: every other byte, or three in four, are NUL or of a low page.

    A run of NULs, as a file with a hole has, is neither.
    """
    codes = np.frombuffer(head[: len(head) // 4 * 4], np.uint8).reshape(-1, 4)
    is_low = (codes < 32) & (codes != 9) & (codes != 10) & (codes != 13)
    if is_low.sum() < 4 or is_low.mean() > 0.8:
        return None
    shares = is_low.mean(axis=0)  # by place in a group of four
    for encoding, pattern in WIDE.items():
        if all((share > 0.5) == low for share, low in zip(shares, pattern, strict=True)):
            return encoding
    for encoding, line_end in LINE_ENDS.items():  # of scripts without low pages, as CJK
        ends = [place for place in range(0, len(head) - 1, 2) if head.startswith(line_end, place)]
        if len(ends) == head.count(b"\n") >= 2:
            return encoding
    return None
