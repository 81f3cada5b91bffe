"""Many short examples in few rows, none of which sees another."""

import bisect
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# positions whose attention costs as much as all else of one: 6 x width of the model, and more for
# its vocabulary. 1,024 for gpt2-nano, 6,700 for gpt2 by operations, less by the clock
REACH = 2048
GROWTH = 0.1  # of the width at most, from one try to the next
TRIED = 400  # items put into rows while the width grows e-fold: few are tried at more widths

# relative to the largest logit: what rounding may do, far below what a real fault does
LEAK = 1e-4  # same shapes, same numbers: this is zero but for the order of sums
SHIFT = 2e-2  # other shapes, and perhaps TF32 or bf16


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


def narrowed(lengths: Ints, rows: list[list[int]], *, capacity: int, group: int) -> list[list[int]]:
    """Use all rows of as many groups, as short as pays: attention costs a row's square.

    rows: as best_fit made them for `capacity`. Returns them, or more and shorter ones that make no
    more groups of `group` rows and cost less, padding counted.
    """
    most = -(-len(rows) // group) * group
    inputs = int(lengths.sum())
    best, least = rows, _cost(lengths, rows, group)
    width = max(int(lengths.max()), -(-inputs // most))
    growth = min(GROWTH, len(lengths) / TRIED)
    while width < capacity and inputs * (1 + width / REACH) < least:
        found = best_fit(lengths, width)
        if len(found) <= most and (cost := _cost(lengths, found, group)) < least:
            best, least = found, cost
        width += int(width * growth) + 1
    return best


def _cost(lengths: Ints, rows: list[list[int]], group: int) -> float:
    """Estimate the work of groups of rows, each as wide as its longest, in positions."""
    widths = [int(lengths[row].sum()) for row in rows]
    return sum(
        len(widths[first : first + group]) * widths[first] * (1 + widths[first] / REACH)
        for first in range(0, len(widths), group)
    )


def one_per_row(lengths: Ints) -> list[list[int]]:
    """Put each item in a row of its own, longest first: rows of like length travel together."""
    return [[item] for item in np.argsort(-lengths, kind="stable").tolist()]


def can_pack(model: Any) -> tuple[bool, str]:
    """Tell whether the examples of a row stay apart in this model, and if not, why.

    A few tokens decide it, on the model itself: an example's logits must not change with its
    neighbour's tokens, and must be those it has in a row of its own.
    """
    import torch

    family = type(model).__name__
    was_training = model.training
    model.eval()
    try:
        tried = Neighbours.of(model)
        with torch.no_grad():
            packed = model(input_ids=tried.rows, position_ids=tried.positions, use_cache=False)
            alone = model(input_ids=tried.example[None], use_cache=False)
        leak, shift = tried.differences(packed=packed.logits, alone=alone.logits[0])
    except (TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return False, f"{family} cannot be called with position_ids alone ({reason:.120})"
    finally:
        model.train(was_training)
    if not leak <= LEAK:
        return False, f"{family} lets an example see others in its row (logits move by {leak:.1e})"
    if not shift <= SHIFT:
        return False, f"{family} does not restart positions in a row (logits move by {shift:.1e})"
    return True, ""


@dataclass(frozen=True)
class Neighbours:
    """An example of T tokens, and two rows of W positions in which it follows another neighbour:
    tensors of int64."""

    example: Any  # [T]
    rows: Any  # [2, W]: neighbour, example, padding
    positions: Any  # [2, W]: from 0 in each

    @classmethod
    def of(cls, model: Any) -> "Neighbours":
        """Choose them from the vocabulary of `model`, on its device."""
        import torch

        device = next(model.parameters()).device
        vocabulary = model.config.get_text_config().vocab_size
        tokens = (torch.arange(10, device=device) * 7 + 3) % vocabulary
        first, example = tokens[:4], tokens[4:10]
        other = (first + 1) % vocabulary
        padding = tokens.new_zeros(1)
        rows = torch.stack([torch.cat([one, example, padding]) for one in (first, other)])
        lengths = len(first), len(example), len(padding)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        return cls(example, rows, positions.expand(2, -1))

    def differences(self, *, packed: Any, alone: Any) -> tuple[float, float]:
        """Return how far a neighbour, and the place in the row, move the example's logits: `packed`
        in the rows, [2, W, V], and `alone`, [T, V]; relative to the largest."""
        end = self.rows.shape[1] - 1
        one, other = packed[:, end - len(self.example) : end].float()
        scale = alone.abs().max().item() or 1.0
        leak = (one - other).abs().max().item() / scale
        return leak, (one - alone.float()).abs().max().item() / scale
