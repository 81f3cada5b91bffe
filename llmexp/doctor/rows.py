"""The rows of a run that is under way, thinned: what is kept of them does not grow with its steps.

Which rows stay is a function of the rows alone, so a resumed run keeps the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any

MOST = 1024  # rows; more than a diagnosis can tell apart

Row = Mapping[str, Any]


class Rows:
    """The first row, the newest, every validation, and of the others one in so many.

    Where that is too much, every second of the others goes.
    """

    def __init__(self) -> None:
        self.count = 0  # taken so far
        self._kept: list[tuple[int, Row]] = []
        self._every, self._most = 1, MOST

    def __iter__(self) -> Iterator[Row]:
        """Iterate over the rows that are kept, in order."""
        return (row for _, row in self._kept)

    def append(self, row: Row) -> None:
        """Take the next row."""
        if self._kept and not self._stays(*self._kept[-1]):
            self._kept.pop()
        self._kept.append((self.count, row))
        self.count += 1
        if len(self._kept) > self._most:
            self._every *= 2
            self._kept = [known for known in self._kept if self._stays(*known)]
            self._most = max(MOST, 2 * len(self._kept))  # validations alone may be as many

    def _stays(self, number: int, row: Row) -> bool:
        return number % self._every == 0 or "eval/loss" in row
