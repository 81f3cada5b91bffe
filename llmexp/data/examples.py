"""The examples of one side: token ranges in a memory-mapped store."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmexp.data.store import Mapped

Ints = npt.NDArray[np.int64]

# where an example begins in tokens.bin, and how many tokens it has, the last target included
RANGE = np.dtype([("start", np.int64), ("length", np.int32)])
TOUCHED = 256  # ranges read before the pages are handed back; each maps up to 64 KiB


@dataclass(frozen=True)
class Example:
    """One example of n tokens: n - 1 inputs, and the n - 1 tokens that follow them."""

    input_ids: Ints  # [n]
    loss_mask: npt.NDArray[np.bool_]  # [n]; the first token is no target here, whatever it says


class Examples(Sequence[Example]):
    """Examples by number, read from disk when asked for."""

    def __init__(self, tokens: Mapped, ranges: Mapped, mask: Mapped | None) -> None:
        self._tokens = tokens
        self._ranges = ranges
        self._mask = mask
        self._touched = 0

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._ranges.array)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        """Return one example; raises IndexError."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self):,}")
        ids, mask, _ = self.gather(np.array([index % len(self)]))
        return Example(ids, mask)

    def lengths(self, indices: Ints) -> Ints:
        """Return the number of tokens of each of these examples."""
        lengths: Ints = self._ranges.array["length"][indices].astype(np.int64)
        self._release(len(indices))
        return lengths

    def gather(self, indices: Ints) -> tuple[Ints, npt.NDArray[np.bool_], Ints]:
        """Return the tokens of these examples in one row, which are trained, and the lengths."""
        ranges = self._ranges.array[indices]
        lengths = ranges["length"].astype(np.int64)
        places = np.repeat(ranges["start"], lengths) + within(lengths)
        ids = self._tokens.array[places].astype(np.int64)
        mask = np.ones(len(ids), bool) if self._mask is None else self._mask.array[places]
        self._release(len(indices))
        return ids, mask, lengths

    def _release(self, count: int) -> None:
        self._touched += count
        if self._touched >= TOUCHED:
            self._touched = 0
            for mapped in (self._tokens, self._ranges, self._mask):
                if mapped is not None:
                    mapped.release()


def within(lengths: Ints) -> Ints:
    """Count 0, 1, ... n - 1 for each length n, one after the other."""
    firsts = np.cumsum(lengths) - lengths
    counted: Ints = np.arange(int(lengths.sum())) - np.repeat(firsts, lengths)
    return counted
