"""Random-looking numbers that are a pure function of their key: for the split and the order."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


def key(*parts: object) -> np.uint64:
    """Return 64 bits that depend on every part."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def mix(words: npt.NDArray[Any], by: np.uint64) -> Words:
    """Scatter 64-bit words, one to one: the finalizer of splitmix64 (Steele et al. 2014)."""
    mixed: Words = words.astype(np.uint64) ^ by
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


class Order:
    """A permutation of range(n) that needs no memory (Black & Rogaway 2002).

    A Feistel network permutes range(rows x columns), which is little more than range(n); what
    falls outside range(n) walks on until it is inside.
    """

    ROUNDS = 8

    def __init__(self, n: int, *parts: object) -> None:
        self.n = n
        self._rows = int(np.ceil(np.sqrt(n)))
        self._columns = -(-n // self._rows)
        self._keys = [key(*parts, number) for number in range(self.ROUNDS)]

    def __getitem__(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return what stands at these positions."""
        found = self._walk(positions.astype(np.uint64))
        while (outside := found >= np.uint64(self.n)).any():
            found[outside] = self._walk(found[outside])
        return found.astype(np.int64)

    def _walk(self, places: Words) -> Words:
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        left, right = places // columns, places % columns
        for number in range(0, self.ROUNDS, 2):
            left = (left + mix(right, self._keys[number]) % rows) % rows
            right = (right + mix(left, self._keys[number + 1]) % columns) % columns
        return left * columns + right
