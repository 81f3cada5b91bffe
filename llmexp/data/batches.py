"""The examples of each optimizer step, and the rows they travel in.

Which examples a step has is a pure function of (seed, step). Rows, micro-batches and packing only
decide how
they reach the model. Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmexp.data.examples import Examples, within
from llmexp.data.mixing import Order
from llmexp.data.packing import best_fit, narrowed, one_per_row
from llmexp.errors import RequestError

if TYPE_CHECKING:
    import torch

Ints = npt.NDArray[np.int64]

IGNORE = -100  # the target of a position that is not a label
PAGE = 4096  # positions of the order that are computed at once
FULL = 15 / 16  # of a pass: examples do not fill every row, and one row too many is another pass


@dataclass(frozen=True)
class MicroBatch:
    """Rows for one forward pass, int64 [B, T]; call the model with use_cache=False and no mask."""

    input_ids: torch.Tensor
    targets: torch.Tensor  # the token to predict from each position, or -100: shifted already
    position_ids: torch.Tensor | None  # None: one example per row, plain causal attention is right
    segments: torch.Tensor  # the example's number in the dataset; -1: padding
    labels: torch.Tensor  # [N] where targets are labels, in the flattened rows

    def to(self, device: torch.device | str) -> MicroBatch:
        """Return the same rows on a device; from pinned memory the copy does not wait."""
        positions = self.position_ids
        return MicroBatch(
            self.input_ids.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            None if positions is None else positions.to(device, non_blocking=True),
            self.segments.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
        )


class Batch:
    """The examples of one optimizer step."""

    def __init__(self, examples: Examples, indices: Ints, *, max_length: int, pack: bool) -> None:
        self.indices: tuple[int, ...] = tuple(indices.tolist())
        ids, mask, lengths = examples.gather(indices)
        ends = np.cumsum(lengths)
        is_last = np.zeros(len(ids), bool)
        is_last[ends - 1] = True
        is_first = np.roll(is_last, 1)
        self._inputs = ids[~is_last]
        self._targets = np.where(mask, ids, IGNORE)[~is_first]
        self._lengths = lengths - 1
        self._firsts = np.cumsum(self._lengths) - self._lengths
        self._numbers = indices
        if self._lengths.max() > max_length:
            raise RequestError(
                f"an example has {self._lengths.max():,} inputs, a row holds {max_length:,}: "
                "give Batches the max_length the data was tokenised with"
            )
        self._pack, self._max_length = pack, max_length
        self._rows = best_fit(self._lengths, max_length) if pack else one_per_row(self._lengths)
        self.label_tokens = int((self._targets != IGNORE).sum())

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.indices)

    @property
    def tokens(self) -> int:
        """The number of inputs, padding not counted."""
        return len(self._inputs)

    @property
    def row_count(self) -> int:
        """The fewest rows of at most max_length tokens that were found to hold the examples."""
        return len(self._rows)

    def micro_batches(self, micro_batch_size: int) -> Iterator[MicroBatch]:
        """Yield row_count / micro_batch_size groups, rounded up, of at most so many rows."""
        rows, size = self._rows, micro_batch_size
        if self._pack:
            rows = narrowed(self._lengths, rows, capacity=self._max_length, group=size)
        for first in range(0, len(rows), size):
            yield self._micro_batch(rows[first : first + size])

    def _micro_batch(self, rows: list[list[int]]) -> MicroBatch:
        import torch

        items = np.array([item for row in rows for item in row])
        row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        lengths = self._lengths[items]
        used = np.bincount(row_of, weights=lengths).astype(np.int64)
        width = int(used.max())
        padding = row_of * width - (np.cumsum(used) - used)[row_of]  # before each row
        steps = within(lengths)
        source = np.repeat(self._firsts[items], lengths) + steps
        goal = np.repeat(np.cumsum(lengths) - lengths + padding, lengths) + steps

        def filled(values: Ints, padding: int) -> torch.Tensor:
            flat = np.full(len(rows) * width, padding, np.int64)
            flat[goal] = values
            return torch.from_numpy(flat.reshape(len(rows), width))

        targets = filled(self._targets[source], IGNORE)
        return MicroBatch(
            input_ids=filled(self._inputs[source], 0),
            targets=targets,
            position_ids=filled(steps, 0) if len(items) > len(rows) else None,
            segments=filled(np.repeat(self._numbers[items], lengths), -1),
            labels=(targets.flatten() != IGNORE).nonzero().flatten(),
        )


class Batches:
    """The batches of a run, by the number of the optimizer step."""

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        max_length: int,
        seed: int = 42,
        shuffle: bool = True,
        pack: bool = True,
    ) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._max_length = max_length
        self._seed = seed
        self._shuffle = shuffle
        self._pack = pack
        self._page: tuple[int, int, Ints] = (-1, 0, np.empty(0, np.int64))  # epoch, first, order
        self.steps_per_epoch = -(-len(examples) // batch_size)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0: the same one whenever it is asked for."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self._batch_size
        positions = np.arange(first, min(first + self._batch_size, len(self._examples)))
        indices = self._ordered(epoch, positions) if self._shuffle else positions
        return Batch(self._examples, indices, max_length=self._max_length, pack=self._pack)

    def _ordered(self, epoch: int, positions: Ints) -> Ints:
        known_epoch, start, order = self._page
        if known_epoch != epoch or not start <= positions[0] <= positions[-1] < start + len(order):
            start = int(positions[0])
            end = min(max(start + PAGE, int(positions[-1]) + 1), len(self._examples))
            order = Order(len(self._examples), "order", self._seed, epoch)[np.arange(start, end)]
            self._page = (epoch, start, order)
        return order[positions - start]


def to_measure(examples: Examples, *, rows: int, max_length: int, pack: bool) -> Batches:
    """Return batches of all examples in order, each about one forward pass of `rows` rows.

    What is only measured needs no fixed number of examples: then no pass goes half empty.
    """
    size = rows
    if pack:
        lengths = examples.lengths(np.arange(min(len(examples), PAGE))) - 1
        size = max(rows, int(FULL * rows * max_length / float(lengths.mean())))
    return Batches(examples, batch_size=size, max_length=max_length, shuffle=False, pack=pack)
