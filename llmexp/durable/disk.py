"""The single operations on the disk, each announced to one hook before it happens.

A test sets `hook` to count the operations, and to kill the process or raise an OSError at the n-th
(llmexp/durable/faults.py). All of them raise OSError as the system does.
"""

import errno
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path


def _nothing(operation: str, path: Path) -> None:
    pass


hook: Callable[[str, Path], None] = _nothing


def open_new(path: Path) -> FileIO:
    """Open an empty file for writing, unbuffered: a failed write is not retried behind our back."""
    hook("open", path)
    return FileIO(path, "w")


def open_end(path: Path) -> FileIO:
    """Open a file for appending, unbuffered; create it if it is not there."""
    hook("open", path)
    return FileIO(path, "a")


def write(file: FileIO, data: bytes | memoryview) -> None:
    """Write all bytes; after a short write (a disk that fills up) the next one says why."""
    hook("write", Path(str(file.name)))
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def truncate(file: FileIO, size: int) -> None:
    """Cut an open file to `size` bytes."""
    hook("truncate", Path(str(file.name)))
    file.truncate(size)


def sync(file: FileIO) -> None:
    """Wait until the bytes of an open file are on the disk."""
    hook("fsync", Path(str(file.name)))
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    hook("fsync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network drives cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """Give a file or folder a new name; an existing file is replaced, a filled folder is not."""
    hook("rename", new)
    old.replace(new)


def unlink(path: Path) -> None:
    """Remove a file or a symbolic link."""
    hook("unlink", path)
    path.unlink()


def mkdir(path: Path) -> None:
    """Make one folder whose parent exists."""
    hook("mkdir", path)
    path.mkdir()


def rmdir(path: Path) -> None:
    """Remove one empty folder."""
    hook("rmdir", path)
    path.rmdir()
