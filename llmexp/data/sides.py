"""Training and validation: two sides of examples, cut from token stores into their own store."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from llmexp.data.examples import RANGE, Examples, Ints
from llmexp.data.mixing import Words
from llmexp.data.ranges import RangeWriter, SideFacts, copy, documents, runs, windows
from llmexp.data.split import Flags, Split, duplicates, overlap
from llmexp.data.store import Facts, Store, cached, key_of
from llmexp.durable import Writer
from llmexp.errors import RequestError


@dataclass(frozen=True)
class Cutting:
    """How documents become the examples of two sides."""

    max_length: int
    unit: str  # example | block
    overlong: str  # split | truncate | error; blocks are always split
    duplicates: str  # report | drop
    val_size: float | None  # the share of validation; None: there is a file for it


@dataclass(frozen=True)
class Side:
    """Training or validation: some documents of a token store."""

    name: str
    tokens: Store
    has: Callable[[Words], Flags]  # which documents, by the hashes of their texts


def cut(
    train: Store, validation: Store | None, cutting: Cutting, *, seed: int, root: Path
) -> Store:
    """Return the cached store of both sides' examples, built if need be.

    validation: the tokens of an explicit validation file; None: split the training tokens by
    content.
    """
    tokens = [train.digest, validation and validation.digest]
    used = seed if validation is None else None  # without a split every seed shares one store
    name = f"examples-{key_of([asdict(cutting), tokens, used])[:32]}"
    return cached(root, name, lambda folder: _cut(folder, train, validation, cutting, seed=seed))


def opened(side: str, tokens: Store, ranges: Store, *, unit: str) -> Examples:
    """Open the examples of one side."""
    place, prefix = (ranges, f"{side}.") if unit == "block" else (tokens, "")
    return Examples(
        place.array(f"{prefix}tokens.bin", tokens.facts["dtype"]),
        ranges.array(f"{side}.ranges", RANGE),
        place.array(f"{prefix}mask.bin", np.bool_) if tokens.facts["is_masked"] else None,
    )


def _cut(
    folder: Path, train: Store, validation: Store | None, cutting: Cutting, *, seed: int
) -> Facts:
    facts: Facts = {"duplicates": 0, "overlap": 0}
    kept: dict[Path, Flags | None] = {}
    for store in [train] if validation is None else [train, validation]:
        count, kept[store.folder] = _without_repeats(store, cutting.duplicates)
        facts["duplicates"] += count
    if validation is not None:
        facts["overlap"] = overlap(_hashes(validation), _hashes(train))
    for side in _sides(train, validation, cutting, seed):
        chosen = _chosen(side, kept[side.tokens.folder])
        found = _write(folder, side, chosen, cutting)
        _check(side.name, found, cutting)
        facts[side.name] = asdict(found)
    return facts


def _sides(train: Store, validation: Store | None, cutting: Cutting, seed: int) -> list[Side]:
    if validation is not None:
        return [Side("train", train, _all), Side("validation", validation, _all)]
    split = Split(_hashes(train), cutting.val_size or 0.0, seed)
    if not split.is_possible:
        raise RequestError(
            f"{train.facts['documents']:,} examples hold one distinct text: too few for training "
            "and validation. Add others, or set data.validation_path=FILE"
        )
    return [
        Side("train", train, lambda hashes: ~split.is_validation(hashes)),
        Side("validation", train, split.is_validation),
    ]


def _all(hashes: Words) -> Flags:
    return np.ones(len(hashes), bool)


def _hashes(store: Store) -> Path:
    return store.folder / "hashes.bin"


def _without_repeats(store: Store, policy: str) -> tuple[int, Flags | None]:
    """Count the documents that repeat an earlier one; if they are to go, flag those that stay."""
    kept = np.ones(store.facts["documents"], bool) if policy == "drop" else None
    count = 0
    for repeats in duplicates(_hashes(store)):
        count += len(repeats)
        if kept is not None:
            kept[repeats] = False
    return count, kept


def _chosen(side: Side, kept: Flags | None) -> Iterator[tuple[Ints, Ints]]:
    for first, starts, lengths, hashes in documents(side.tokens.folder):
        chosen = side.has(hashes)
        if kept is not None:
            chosen &= kept[first : first + len(hashes)]
        if chosen.any():
            yield starts[chosen], lengths[chosen]


def _write(
    folder: Path, side: Side, chosen: Iterator[tuple[Ints, Ints]], cutting: Cutting
) -> SideFacts:
    facts = SideFacts()
    mask = side.tokens.folder / "mask.bin" if side.tokens.facts["is_masked"] else None
    if cutting.unit == "block":
        chosen = _joined(folder, side, chosen, facts=facts, max_length=cutting.max_length)
        mask = mask and folder / f"{side.name}.mask.bin"
    with RangeWriter(
        folder / f"{side.name}.ranges",
        mask,
        max_length=cutting.max_length,
        overlong=cutting.overlong,
    ) as writer:
        for starts, lengths in chosen:
            if cutting.unit == "example":
                facts.count_documents(
                    lengths, cutting.max_length, is_cut_off=cutting.overlong == "truncate"
                )
            writer.add(starts, lengths)
    facts.examples, facts.label_tokens = writer.examples, writer.label_tokens
    facts.unlabelled = writer.unlabelled
    return facts


def _joined(
    folder: Path,
    side: Side,
    chosen: Iterator[tuple[Ints, Ints]],
    *,
    facts: SideFacts,
    max_length: int,
) -> Iterator[tuple[Ints, Ints]]:
    """Copy the documents of a side one after the other, then cut the whole into windows."""
    names = {"tokens.bin": np.dtype(side.tokens.facts["dtype"]).itemsize}
    if side.tokens.facts["is_masked"]:
        names["mask.bin"] = 1
    with ExitStack() as files:
        writers = {
            name: files.enter_context(Writer(folder / f"{side.name}.{name}")) for name in names
        }
        for starts, lengths in chosen:
            facts.count_documents(lengths, max_length, is_cut_off=False)
            for name, itemsize in names.items():
                copy(side.tokens.folder / name, writers[name], runs(starts, lengths), itemsize)
    return windows(facts.tokens, max_length)


def _check(side: str, facts: SideFacts, cutting: Cutting) -> None:
    if cutting.overlong == "error" and facts.overlong:
        raise RequestError(
            f"{facts.overlong:,} {side} examples are longer than data.max_length="
            f"{cutting.max_length} (the longest has {facts.longest:,} tokens): raise "
            "data.max_length, or set data.overlong=split or truncate"
        )
    if cutting.overlong == "truncate" and facts.unlabelled:
        raise RequestError(
            f"{facts.unlabelled:,} {side} examples have no label token within "
            f"data.max_length={cutting.max_length}: raise it, or set data.overlong=split"
        )
    if not facts.examples:
        raise RequestError(f"the {side} side has no label token: there is nothing to learn from")
