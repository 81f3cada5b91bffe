"""From documents to examples: which side, which duplicates, and how long ones are cut."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from llmexp.data.examples import RANGE, Ints, within
from llmexp.data.mixing import Words
from llmexp.durable import Writer

DOCUMENTS = 1 << 12  # read at once
BINS = 32  # of the length histogram: bin b holds the lengths in (2^(b - 1), 2^b]
WINDOW = 1 << 22  # tokens of a continuous text that are cut at once, bytes that are copied


class Documents(NamedTuple):
    """Some documents of a token store."""

    first: int  # the number of the first of them in the store
    starts: Ints
    lengths: Ints  # tokens, end-of-text included
    hashes: Words


@dataclass
class SideFacts:
    """The numbers of one side."""

    documents: int = 0
    tokens: int = 0  # of the documents, what is cut off for good not counted
    overlong: int = 0  # documents of more than max_length inputs
    examples: int = 0
    label_tokens: int = 0
    unlabelled: int = 0  # pieces without a label token, left out
    longest: int = 0
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)  # documents by length

    def count_documents(self, lengths: Ints, max_length: int, *, is_cut_off: bool) -> None:
        """Add the lengths of some documents; is_cut_off: over-long ones lose the rest."""
        self.documents += len(lengths)
        kept = np.minimum(lengths, max_length + 1) if is_cut_off else lengths
        self.tokens += int(kept.sum())
        self.overlong += int((lengths > max_length + 1).sum())
        self.longest = max(self.longest, int(lengths.max(initial=0)))
        bins = np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
        counts = np.bincount(bins, minlength=BINS)
        self.histogram = (np.array(self.histogram) + counts).tolist()


def documents(store: Path) -> Iterator[Documents]:
    """Read the documents of a token store in order, a few thousand at once."""
    with (store / "offsets.bin").open("rb") as offsets, (store / "hashes.bin").open("rb") as hashes:
        first = 0
        last = np.fromfile(offsets, np.int64, 1)
        while len(words := np.fromfile(hashes, np.uint64, DOCUMENTS)):
            bounds = np.concatenate([last, np.fromfile(offsets, np.int64, len(words))])
            yield Documents(first, bounds[:-1], np.diff(bounds), words)
            first, last = first + len(words), bounds[-1:]


class RangeWriter:
    """Cut documents into examples and write where each begins and how long it is."""

    def __init__(self, path: Path, mask: Path | None, *, max_length: int, overlong: str) -> None:
        self.examples = 0
        self.label_tokens = 0
        self.unlabelled = 0  # without a label token, left out
        self._writer = Writer(path)
        self._mask = mask
        self._max_length = max_length
        self._overlong = overlong

    def add(self, starts: Ints, lengths: Ints) -> None:
        """Write the examples of some documents, those without a label token left out."""
        size = self._max_length
        if self._overlong == "split":
            counts = np.maximum(-(-(lengths - 1) // size), 1)
            offsets = within(counts) * size
            starts = np.repeat(starts, counts) + offsets
            lengths = np.minimum(np.repeat(lengths, counts) - 1 - offsets, size) + 1
        else:
            lengths = np.minimum(lengths, size + 1)
        labels = self._labels(starts, lengths)
        kept = labels > 0
        ranges = np.empty(int(kept.sum()), RANGE)
        ranges["start"], ranges["length"] = starts[kept], lengths[kept]
        self._writer.write(ranges.tobytes())
        self.examples += len(ranges)
        self.label_tokens += int(labels.sum())
        self.unlabelled += len(kept) - len(ranges)

    def _labels(self, starts: Ints, lengths: Ints) -> Ints:
        if self._mask is None or not len(starts):
            return lengths - 1
        begin, end = int(starts[0]), int((starts + lengths).max())
        mask = np.fromfile(self._mask, np.bool_, end - begin, offset=begin)
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(mask)])
        labels: Ints = sums[starts + lengths - begin] - sums[starts + 1 - begin]
        return labels

    def __enter__(self) -> "RangeWriter":
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, trace)


def copy(source: Path, goal: Writer, runs: Iterable[tuple[int, int]], itemsize: int) -> None:
    """Append the tokens [start, end) of each run to another file."""
    with source.open("rb") as file:
        for start, end in runs:
            file.seek(start * itemsize)
            left = (end - start) * itemsize
            while left:
                block = file.read(min(left, WINDOW))
                goal.write(block)
                left -= len(block)


def runs(starts: Ints, lengths: Ints) -> Iterator[tuple[int, int]]:
    """Join documents that follow each other; yield the tokens [start, end) of each run."""
    ends = starts + lengths
    breaks = np.flatnonzero(starts[1:] != ends[:-1])
    firsts = np.concatenate([starts[:1], starts[1:][breaks]])
    lasts = np.concatenate([ends[:-1][breaks], ends[-1:]])
    return zip(firsts.tolist(), lasts.tolist(), strict=True)


def windows(total: int, max_length: int) -> Iterator[tuple[Ints, Ints]]:
    """Cut a continuous text of `total` tokens into documents that share one token with the next."""
    size = max(1, WINDOW // max_length) * max_length
    for start in range(0, total - 1, size):
        yield np.array([start]), np.array([min(size, total - 1 - start) + 1])
