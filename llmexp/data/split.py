"""Which side an example is on, and which examples are equal: by content, in bounded memory.

An example's side depends on its text and the seed alone: adding or shuffling lines moves no other
line, and equal lines share a side.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmexp.data.mixing import Words, key, mix

BLOCK = 1 << 20  # hashes read at once
PART = 1 << 20  # hashes compared at once

Flags = npt.NDArray[np.bool_]


class Split:
    """Send the share `val_size` of the distinct texts to validation; never none, never all."""

    def __init__(self, hashes: Path, val_size: float, seed: int) -> None:
        self._key = key("split", seed)
        self._limit = np.uint64(int(val_size * 2**64))
        lowest, highest = self._range(hashes)
        self.is_possible = lowest < highest  # two distinct texts
        self._limit = min(max(self._limit, lowest + np.uint64(1)), highest)

    def _range(self, hashes: Path) -> tuple[np.uint64, np.uint64]:
        lowest, highest = np.uint64(2**64 - 1), np.uint64(0)
        for _, block in blocks(hashes):
            mixed = mix(block, self._key)
            lowest, highest = min(lowest, mixed.min()), max(highest, mixed.max())
        return lowest, highest

    def is_validation(self, hashes: Words) -> Flags:
        """Tell for each document whether it is on the validation side."""
        return mix(hashes, self._key) < self._limit


def blocks(path: Path) -> Iterator[tuple[int, Words]]:
    """Read a file of hashes, a few megabytes at once; yield each block with its first number."""
    with path.open("rb") as file:
        first = 0
        while len(block := np.fromfile(file, np.uint64, BLOCK)):
            yield first, block
            first += len(block)


def duplicates(hashes: Path) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the numbers of the documents that repeat an earlier one."""
    parts = _parts(hashes)
    for part in range(parts):
        words, numbers = _part(hashes, part, parts)
        _, firsts = np.unique(words, return_index=True)
        repeats = np.ones(len(words), bool)
        repeats[firsts] = False
        yield numbers[repeats]


def overlap(one: Path, other: Path) -> int:
    """Count the documents of `one` that are in `other` too."""
    parts = max(_parts(one), _parts(other))
    return sum(
        int(np.isin(_part(one, part, parts)[0], _part(other, part, parts)[0]).sum())
        for part in range(parts)
    )


def _parts(hashes: Path) -> int:
    return max(1, -(-hashes.stat().st_size // (8 * PART)))


def _part(hashes: Path, part: int, parts: int) -> tuple[Words, npt.NDArray[np.int64]]:
    """Return the hashes that fall in one of `parts` classes, and their documents, in order."""
    words, numbers = [], []
    for first, block in blocks(hashes):
        mine = np.flatnonzero(block % np.uint64(parts) == part)
        words.append(block[mine])
        numbers.append(mine + first)
    return np.concatenate(words), np.concatenate(numbers)
