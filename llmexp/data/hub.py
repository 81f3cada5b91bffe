"""Hugging Face datasets, by hub id or local folder, through the `datasets` library."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from llmexp import durable
from llmexp.data.files import NEEDS_DATA_EXTRA
from llmexp.data.records import ROWS, Record
from llmexp.data.text import Notes
from llmexp.errors import RequestError

# OWNER/NAME or a folder, then :SUBSET and @SPLIT if need be
SPEC = re.compile(r"(?P<path>.+?)(:(?P<subset>[\w.\-]+))?(@(?P<split>[^@]+))?")
PROBE_SECONDS = 5.0  # for the hub to answer; `datasets` alone would ask for half a minute


class HubSource:
    """One split of a dataset."""

    def __init__(self, spec: str, *, key: str) -> None:
        self._key = key
        self.spec = spec
        match = SPEC.fullmatch(spec)
        self._subset: str | None = None
        self._split: str | None = None  # None: not named, so train
        if match is None or os.path.isdir(os.path.expanduser(spec)):
            path = spec
        else:
            path, self._subset, self._split = match["path"], match["subset"], match["split"]
        self._path = path
        self._folder = Path(os.path.expanduser(path))

    @cached_property
    def dataset(self) -> Any:
        """The dataset; raises RequestError that says what to do where it cannot be had."""
        try:
            import datasets
        except ImportError as error:
            raise RequestError(f"data=hf needs the datasets library: {NEEDS_DATA_EXTRA}") from error
        datasets.disable_progress_bars()
        if any((self._folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return self._saved(datasets)
        if self._folder.is_dir():
            return self._loaded(
                datasets,
                str(self._folder),
                "name a folder of Parquet, JSON lines, CSV or text files, a subset and a split of "
                "it as FOLDER:SUBSET@SPLIT",
            )
        self._refuse_a_wrong_path()
        bring = (
            "bring it as a folder (hf download --repo-type dataset OWNER/NAME --local-dir FOLDER) "
            f"and set {self._key}=FOLDER"
        )
        if _is_hub_reachable():
            named = "a subset and a split are named OWNER/NAME:SUBSET@SPLIT"
            return self._loaded(datasets, self._path, f"{named}; or {bring}")
        with _offline():
            cure = f"the Hugging Face hub cannot be reached, and no copy is here: {bring}"
            return self._loaded(datasets, self._path, cure)

    def _refuse_a_wrong_path(self) -> None:
        if self._folder.is_file():
            raise RequestError(
                f"{self._key}={self.spec} is a file, and data=hf reads datasets of the hub and "
                "folders: set data=parquet, jsonl, csv or text"
            )
        if self._path.startswith((".", "/", "~")) or self._path.count("/") > 1:
            raise RequestError(
                f"{self._key}={self.spec}: the folder {self._folder} does not exist (relative to "
                f"{Path.cwd()}): give one that does, or OWNER/NAME on the Hugging Face hub"
            )

    def _loaded(self, datasets: Any, place: str, cure: str) -> Any:
        try:
            return datasets.load_dataset(place, self._subset, split=self._split or "train")
        except Exception as error:  # of many kinds: network, hub, format, missing split
            why = "" if isinstance(error, ConnectionError) else f" ({_reason(error)})"
            raise RequestError(f"{self._key}={self.spec} cannot be loaded{why}: {cure}") from error

    def _saved(self, datasets: Any) -> Any:
        try:
            saved = datasets.load_from_disk(str(self._folder))
        except Exception as error:
            raise RequestError(
                f"{self._key}={self.spec} cannot be loaded ({_reason(error)}): save it again with "
                "save_to_disk"
            ) from error
        if self._subset:
            raise self._refusal(f"has no subsets: leave :{self._subset} out")
        split = self._split or "train"
        if isinstance(saved, dict):
            if split in saved:
                return saved[split]
            raise self._refusal(
                f"has no split {split!r}, it has {', '.join(saved)}: name one, as in "
                f"{self._key}={self._path}@{next(iter(saved), 'SPLIT')}"
            )
        if self._split not in (None, str(saved.split)):
            raise self._refusal(
                f"has no splits, it is one table of {len(saved):,} rows: leave @{split} out"
            )
        return saved

    def _refusal(self, text: str) -> RequestError:
        return RequestError(f"{self._key}={self.spec}: the saved dataset {self._folder} {text}")

    @property
    def size(self) -> int:
        """Bytes, as far as the library knows them."""
        return sum(path.stat().st_size for path in self._files()) or len(self.dataset)

    def identity(self) -> list[str]:
        """Return what changes with a row: the digests of the Arrow files, or of the rows."""
        files = self._files()
        if files and self.dataset._indices is None:
            split = self._split or "train"
            return [split, str(len(self.dataset)), *map(durable.sha256, files)]
        sha256 = hashlib.sha256()
        for record in self.records(Notes()):
            sha256.update(json.dumps(record.fields, default=str).encode())
        return [sha256.hexdigest()]

    def _files(self) -> list[Path]:
        return [Path(file["filename"]) for file in self.dataset.cache_files]

    def records(self, notes: Notes) -> Iterator[Record]:
        """Read the rows, a few hundred in memory. Raises RequestError where one is damaged."""
        before, size, total = notes.position, self.size, len(self.dataset)
        number = 0
        try:
            for batch in self.dataset.iter(batch_size=ROWS):
                for values in zip(*batch.values(), strict=True):
                    number += 1
                    yield Record(f"{self.spec}:row {number}", dict(zip(batch, values, strict=True)))
                notes.position = before + size * number // total
        except (OSError, ValueError) as error:  # Arrow's errors and those of UTF-8 are ValueErrors
            raise RequestError(
                f"{self.spec}: damaged after row {number:,} ({_reason(error)}): fetch it again"
            ) from error


def _reason(error: Exception) -> str:
    return f"{(str(error).splitlines() or [type(error).__name__])[0]:.200}"


def _is_hub_reachable() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # name resolution, proxy, time-out: all mean the same here
        return False
    return True


@contextmanager
def _offline() -> Iterator[None]:
    """Let `datasets` look into its cache alone."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
