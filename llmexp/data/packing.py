"""Many short examples in few rows, none of which sees another."""

import bisect

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def best_fit(lengths: Ints, capacity: int) -> list[list[int]]:
    """Put items into as few rows as best-fit-decreasing finds; longest row first (Johnson 1973).

    lengths: of the items, each at most `capacity`. Returns the items' numbers, row by row.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (what a row has left, the row), sorted
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        fit = bisect.bisect_left(spaces, (length, -1))
        if fit == len(spaces):
            rows.append([])
            left, row = capacity, len(rows) - 1
        else:
            left, row = spaces.pop(fit)
        rows[row].append(item)
        bisect.insort(spaces, (left - length, row))
    used = [0] * len(rows)
    for left, row in spaces:
        used[row] = capacity - left
    return [rows[row] for row in sorted(range(len(rows)), key=lambda row: -used[row])]


def one_per_row(lengths: Ints) -> list[list[int]]:
    """Put each item in a row of its own, longest first, so that rows of like length travel together."""
    return [[item] for item in np.argsort(-lengths, kind="stable").tolist()]
