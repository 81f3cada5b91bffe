"""A folder that is built once, by one process, and shared by all: the cache.

Its name is the digest of everything that its content depends on. `manifest.json` holds the SHA-256
of each file, and every file is held against it before it is used. Safe to delete at any time.
"""

import errno
import fcntl
import hashlib
import json
import logging
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmexp import durable
from llmexp.errors import RequestError, RunError

logger = logging.getLogger("llmexp")

FORMAT = 2  # of the files; another number makes every cache anew
MANIFEST = "manifest.json"

Facts = dict[str, Any]  # JSON-able


@dataclass(frozen=True)
class Store:
    """A verified folder of the cache."""

    folder: Path
    facts: Facts
    digest: str  # of the content of all files

    def array(self, name: str, dtype: npt.DTypeLike) -> "Mapped":
        """Map one of its files."""
        return Mapped(self.folder / name, np.dtype(dtype))


class Mapped:
    """A file as a read-only array whose pages can be handed back, so that they do not pile up."""

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.array: npt.NDArray[Any] = np.frombuffer(self._map, dtype)

    def release(self) -> None:
        """Give the memory of the pages read so far back to the system; the array stays as it is."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def key_of(described: object) -> str:
    """Return a digest of JSON-able settings."""
    text = json.dumps([FORMAT, described], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def cached(root: Path, name: str, build: Callable[[Path], Facts]) -> Store:
    """Return the store of that name, built by `build(folder)` if it is missing or damaged.

    Raises RequestError where the cache cannot be written, RunError where the disk is full.
    """
    place = root / name
    try:
        store = _verified(place / "store")
        if store is not None:
            return store
        durable.make_folder(place)
        with _lock(place):
            return _verified(place / "store") or _built(place, build)
    except OSError as error:
        raise _told(error, root) from error


def _built(place: Path, build: Callable[[Path], Facts]) -> Store:
    final = place / "store"
    durable.remove_leftovers(place)
    if final.exists():
        logger.warning("the data cache %s is damaged: building it again", final)
        durable.remove_directory(final)
    unfinished = durable.temporary(final)
    durable.make_folder(unfinished)
    try:
        facts = build(unfinished)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": durable.sha256(path)}
            for path in sorted(unfinished.iterdir())
        }
        durable.write_json(unfinished / MANIFEST, {"files": files, "facts": facts})
        durable.publish_directory(unfinished, final)
    except BaseException:
        durable.discard(unfinished)
        raise
    store = _verified(final)
    if store is None:
        raise RunError(f"{final} cannot be read back as it was written: check the disk")
    return store


def _verified(folder: Path) -> Store | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files: dict[str, dict[str, Any]] = manifest["files"]
        for name, expected in files.items():
            path = folder / name
            if path.stat().st_size != expected["bytes"]:
                return None
            if durable.sha256(path) != expected["sha256"]:
                return None
        digest = key_of([[name, files[name]["sha256"]] for name in sorted(files)])
        return Store(folder, manifest["facts"], digest)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _lock(place: Path) -> Iterator[None]:
    """Wait until no other process builds here; the kernel frees the lock of a process that died."""
    with (place / ".lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process prepares the same data: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _told(error: OSError, root: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RunError(
            f"the disk is full, the data cache {root} cannot be written: make room, or set "
            "data.cache_dir to a folder on another disk"
        )
    return RequestError(
        f"the data cache {root} cannot be used ({error.strerror}): set data.cache_dir to a folder "
        "that you may write"
    )
