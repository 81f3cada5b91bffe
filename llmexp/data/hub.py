"""Hugging Face datasets, by hub id or local folder, through the `datasets` library."""

import hashlib
import json
import re
from collections.abc import Iterator
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


class HubSource:
    """One split of a dataset."""

    def __init__(self, spec: str, *, key: str) -> None:
        self._key = key
        self.spec = spec
        match = SPEC.fullmatch(spec)
        if match is None or Path(spec).expanduser().is_dir():
            self._path, self._subset, self._split = spec, None, "train"
        else:
            self._path, self._subset = match["path"], match["subset"]
            self._split = match["split"] or "train"

    @cached_property
    def dataset(self) -> Any:
        """The dataset; raises RequestError that says what to do where it cannot be had."""
        try:
            import datasets
        except ImportError as error:
            raise RequestError(f"data=hf needs the datasets library: {NEEDS_DATA_EXTRA}") from error
        datasets.disable_progress_bars()
        folder = Path(self._path).expanduser()
        try:
            if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
                saved = datasets.load_from_disk(str(folder))
                return saved[self._split] if isinstance(saved, dict) else saved
            place = str(folder) if folder.is_dir() else self._path
            return datasets.load_dataset(place, self._subset, split=self._split)
        except Exception as error:  # of many kinds: network, hub, format, missing split
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RequestError(
                f"{self._key}={self.spec} cannot be loaded ({reason:.200}): with no network, "
                "bring it as a folder (hf download --repo-type dataset OWNER/NAME --local-dir "
                f"FOLDER) and set {self._key}=FOLDER; a subset and a split are named "
                "OWNER/NAME:SUBSET@SPLIT"
            ) from error

    @property
    def size(self) -> int:
        """Bytes, as far as the library knows them."""
        return sum(path.stat().st_size for path in self._files()) or len(self.dataset)

    def identity(self) -> list[str]:
        """Return what changes with a row: the digests of the Arrow files, or of the rows."""
        files = self._files()
        if files and self.dataset._indices is None:
            return [self._split, str(len(self.dataset)), *map(durable.sha256, files)]
        sha256 = hashlib.sha256()
        for record in self.records(Notes()):
            sha256.update(json.dumps(record.fields, default=str).encode())
        return [sha256.hexdigest()]

    def _files(self) -> list[Path]:
        return [Path(file["filename"]) for file in self.dataset.cache_files]

    def records(self, notes: Notes) -> Iterator[Record]:
        """Read the rows, a few hundred in memory."""
        before, size, total = notes.position, self.size, len(self.dataset)
        number = 0
        for batch in self.dataset.iter(batch_size=ROWS):
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield Record(f"{self.spec}:row {number}", dict(zip(batch, values, strict=True)))
            notes.position = before + size * number // total
