"""Whole files and whole folders that appear at once or not at all, whenever the process is killed.

The recipe is always the same: write beside the goal under a name that starts with `.tmp-`, fsync,
rename, fsync the parent folder. What a kill leaves behind is told by its name, and
`remove_leftovers` clears it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from types import TracebackType

from llmexp.durable import disk

TEMPORARY = ".tmp-"
REPLACED = ".old-"


class Writer:
    """Write one file and hash it on the way; when the block ends, its bytes are on the disk."""

    def __init__(self, path: Path) -> None:
        self._file = disk.open_new(path)
        self._hash = hashlib.sha256()
        self.size = 0  # bytes

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`; raises OSError."""
        hashing = threading.Thread(target=self._hash.update, args=(data,))
        hashing.start()  # beside the disk: neither holds the interpreter
        try:
            disk.write(self._file, data)
        finally:
            hashing.join()
        self.size += memoryview(data).nbytes

    @property
    def sha256(self) -> str:
        """The SHA-256 of what has been written, in hexadecimal."""
        return self._hash.hexdigest()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                disk.sync(self._file)


def temporary(path: Path) -> Path:
    """Name the sibling under which `path` is to be prepared."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file by `data`: a reader finds the old bytes or the new ones; raises OSError."""
    unfinished = temporary(path)
    try:
        with Writer(unfinished) as file:
            file.write(data)
        disk.rename(unfinished, path)
    except OSError:
        discard(unfinished)
        raise
    disk.sync_path(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text` in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Replace a file by `value` as JSON, as `write_bytes` does."""
    write_bytes(path, encode(value, indent=2) + b"\n")


def encode(value: object, indent: int | None = None) -> bytes:
    """Return `value` as JSON in UTF-8; NaN and the infinities as Python writes them."""
    # a lone surrogate, which UTF-8 has no bytes for, becomes the escape that JSON reads back
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode(errors="backslashreplace")


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, so that they outlast a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        disk.mkdir(path)
    except FileExistsError:
        if not path.is_dir():  # else another process has made it since we looked
            raise
    disk.sync_path(path.parent)


def sync_tree(folder: Path) -> None:
    """Bring to the disk what others have written below `folder` (save_pretrained, for one)."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            sync_tree(path)
        else:
            disk.sync_path(path)
    disk.sync_path(folder)


def publish_directory(unfinished: Path, final: Path) -> None:
    """Name a folder whose files are synced; raises OSError, also if `final` is a filled folder."""
    disk.sync_path(unfinished)
    disk.rename(unfinished, final)
    disk.sync_path(final.parent)


def replace_directory(unfinished: Path, final: Path) -> None:
    """Put a folder whose files are synced in the place of `final`, which may exist.

    A kill between the two renames leaves the old folder aside; `remove_leftovers` puts it back.
    """
    replaced = final.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        if replaced.exists():
            _remove_tree(replaced)
        disk.rename(final, replaced)
    try:
        publish_directory(unfinished, final)
    except OSError:
        if replaced.exists() and not final.exists():
            disk.rename(replaced, final)
        raise
    if replaced.exists():
        _remove_tree(replaced)


def remove_directory(path: Path) -> None:
    """Remove a folder: it loses its name in one step, so that nobody ever reads half of it."""
    doomed = temporary(path)
    discard(doomed)
    disk.rename(path, doomed)
    disk.sync_path(path.parent)
    _remove_tree(doomed)


def remove_leftovers(folder: Path) -> list[Path]:
    """Clear what a killed process left in `folder`, whose lock we hold; return what was found."""
    found = []
    for path in sorted(folder.glob(f"{REPLACED}*")):
        found.append(path)
        original = path.with_name(path.name.removeprefix(REPLACED))
        if original.exists():
            _remove_tree(path)
        else:
            disk.rename(path, original)
            disk.sync_path(folder)
    for path in sorted(folder.glob(f"{TEMPORARY}*")):
        found.append(path)
        discard(path)
    return found


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write where `folder` lies."""
    return shutil.disk_usage(folder).free


def discard(path: Path) -> None:
    """Remove a temporary file or folder if the disk lets us; the next start tries again."""
    with contextlib.suppress(OSError):
        _remove_tree(path)


def _remove_tree(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        disk.unlink(path)
    elif path.is_dir():
        for child in sorted(path.iterdir()):
            _remove_tree(child)
        disk.rmdir(path)
