"""What a run is about to train on, in numbers and two examples: read it before the first step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmexp.data.examples import Examples
from llmexp.data.mixing import Order
from llmexp.data.packing import best_fit, narrowed
from llmexp.data.ranges import SideFacts
from llmexp.data.sides import Cutting

FEW = 1000  # training examples below which a warning is due
FEW_TO_VALIDATE = 50  # validation examples
SAMPLED_STEPS = 32  # for the share of padding
ROWS = 8  # of a forward pass, for the same: what a plan will choose is not known here
SHOWN = 160  # characters of each part of a previewed example

Preview = tuple[tuple[tuple[str, bool], ...], ...]  # per example, per part: text, is it trained


@dataclass(frozen=True)
class Padding:
    """The share of computed positions that hold no token, for one step's examples."""

    batch_size: int
    to_max_length: float
    to_longest: float
    packed: float


@dataclass(frozen=True)
class DataReport:
    """The data report."""

    name: str
    files: tuple[str, ...]
    shape: str
    cutting: Cutting
    train: SideFacts
    validation: SideFacts
    duplicates: int
    overlap: int  # validation texts that are in the training file too
    notes: Mapping[str, int]  # counts of what was met while reading
    end_of_text: str
    documents: int  # read, repeats included
    stops: int  # of them end with an end-of-text that is trained
    padding: Padding
    preview: Preview

    @property
    def warnings(self) -> list[str]:
        """What a person should know before trusting the result."""
        return list(self._warnings())

    def lines(self) -> list[str]:
        """Return the report as lines for a terminal or report.md."""
        return [*self._numbers(), *self._preview(), *(f"warning: {text}" for text in self.warnings)]

    def as_dict(self) -> dict[str, int | float | str]:
        """Return the numbers, flat, for W&B."""
        numbers: dict[str, int | float | str] = {"name": self.name, "shape": self.shape}
        for side, facts in (("train", self.train), ("validation", self.validation)):
            numbers |= {
                f"{side}_examples": facts.examples,
                f"{side}_documents": facts.documents,
                f"{side}_tokens": facts.tokens,
                f"{side}_label_tokens": facts.label_tokens,
                f"{side}_overlong": facts.overlong,
                f"{side}_longest": facts.longest,
            }
        return numbers | {
            "max_length": self.cutting.max_length,
            "duplicates": self.duplicates,
            "validation_overlap": self.overlap,
            "padding_to_max_length": self.padding.to_max_length,
            "padding_to_longest": self.padding.to_longest,
            "padding_packed": self.padding.packed,
            "end_of_text_trained": self.stops / self.documents,
            **{
                f"train_lengths_up_to_{1 << number}": count
                for number, count in enumerate(self.train.histogram)
                if count
            },
            **{f"lines_{name}": count for name, count in self.notes.items()},
        }

    def _numbers(self) -> Iterator[str]:
        train, validation = self.train, self.validation
        yield f"data          {self.name}: {_listed(self.files)}, read as {self.shape}"
        how = (
            "from data.validation_path; data.val_size is not used"
            if self.cutting.val_size is None
            else "split by content"
        )
        yield (
            f"examples      {train.examples:,} to train on, {validation.examples:,} to validate "
            f"({how})"
        )
        yield (
            f"tokens        {train.tokens:,} to train on, {train.label_tokens:,} of them labels; "
            f"{validation.tokens:,} to validate"
        )
        yield f"end of text   {self._stops()}"
        yield from self._lengths()
        yield f"over-long     {self._overlong()}"
        padding = self.padding
        yield (
            f"padding       {padding.packed:.1%} packed; {padding.to_longest:.1%} padded to the "
            f"longest of a step's {padding.batch_size}; {padding.to_max_length:.1%} padded to "
            f"{self.cutting.max_length}"
        )
        dropped = (
            "left out"
            if self.cutting.duplicates == "drop"
            else "kept; data.duplicates=drop leaves them out"
        )
        repeats = f"{self.duplicates:,} exact ({dropped})" if self.duplicates else "none"
        yield f"duplicates    {repeats}"
        yield f"overlap       {self.overlap:,} validation examples are in the training data too"
        if self.notes["blank"]:
            yield f"left out      {self.notes['blank']:,} blank lines or records"

    def _stops(self) -> str:
        cut_off = self.train.overlong + self.validation.overlong
        cut_off = cut_off if self.cutting.overlong == "truncate" else 0
        which = f"all but {cut_off:,} examples" if cut_off else "every example"
        if self.stops == self.documents:
            return f"{self.end_of_text} ends {which} and is trained"
        share = f"{self.stops:,} of {self.documents:,}"
        return f"{self.end_of_text} ends {which}; it is trained in {share}"

    def _lengths(self) -> Iterator[str]:
        counts = np.array(self.train.histogram)
        bins = np.flatnonzero(counts)
        label = "length"
        for number in range(bins[0], bins[-1] + 1):
            low, high = (1 << number - 1) + 1 if number else 1, 1 << number
            share = counts[number] / counts.sum()
            span = f"{low:,}-{high:,}" if low < high else f"{low:,}"
            yield f"{label:<13} {span:>15} tokens {share:6.1%} {'#' * round(40 * share)}".rstrip()
            label = ""

    def _overlong(self) -> str:
        train, limit = self.train, self.cutting.max_length
        if self.cutting.unit == "block":
            return f"nothing: the text is cut into blocks of {limit:,} tokens"
        if not train.overlong:
            return f"none: the longest has {train.longest:,} tokens, data.max_length={limit:,}"
        done = "split" if self.cutting.overlong == "split" else "cut off"
        return (
            f"{train.overlong:,} of {train.documents:,} ({train.overlong / train.documents:.1%}) "
            f"{done} at data.max_length={limit:,}: {train.examples:,} examples in all; the longest "
            f"has {train.longest:,} tokens"
        )

    def _preview(self) -> Iterator[str]:
        for number, parts in enumerate(self.preview, start=1):
            label = f"example {number}"
            for text, is_trained in parts:
                shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
                yield f"{label:<13} {'trained' if is_trained else 'masked ':<7} {shown!r}"
                label = ""

    def _warnings(self) -> Iterator[str]:
        train, notes = self.train, self.notes
        if train.examples < FEW:
            yield (
                f"{train.examples:,} training examples are few (under {FEW:,}): the model will "
                "learn them by heart sooner than what they have in common, and the validation loss "
                f"of {self.validation.examples:,} examples is a rough guide. Add data, or train "
                "fewer epochs"
            )
        yield from self._small_validation()
        if train.unlabelled:
            yield f"{train.unlabelled:,} pieces of long examples have no label token: left out"
        if self.overlap:
            yield (
                f"{self.overlap:,} validation examples are in the training data too: the "
                "validation loss will look better than it is"
            )
        if notes["undecodable"]:
            yield f"{notes['undecodable']:,} lines held invalid UTF-8 (data.encoding_errors)"
        if notes["nul"]:
            yield f"{notes['nul']:,} lines hold NUL characters: data.drop_control=true removes them"
        if notes["huge"]:
            yield f"{notes['huge']:,} lines are longer than 10 MB and were tokenised in pieces"
        if notes["without_tokens"]:
            yield f"{notes['without_tokens']:,} examples gave no token and are left out"

    def _small_validation(self) -> Iterator[str]:
        share, distinct = self.cutting.val_size, self.train.documents + self.validation.documents
        count = self.validation.examples
        if share is not None and share * distinct < 1:
            yield (
                f"data.val_size={share:g} of {distinct:,} examples is less than one: {count:,} "
                f"validate nevertheless. Raise data.val_size, or set data.validation_path"
            )
        elif self.train.examples >= FEW and count < FEW_TO_VALIDATE:
            yield (
                f"{count:,} validation examples are few (under {FEW_TO_VALIDATE}): their loss is a "
                "rough guide. Raise data.val_size, or give data.validation_path more"
            )


def padding_of(examples: Examples, *, batch_size: int, max_length: int) -> Padding:
    """Measure the padding of up to 32 random steps, packed for passes of 8 rows."""
    count = min(len(examples), SAMPLED_STEPS * batch_size)
    chosen = Order(len(examples), "padding")[np.arange(count)]
    inputs = to_max_length = to_longest = packed = 0
    for first in range(0, count, batch_size):
        lengths = examples.lengths(chosen[first : first + batch_size]) - 1
        rows = best_fit(lengths, max_length)
        rows = narrowed(lengths, rows, capacity=max_length, group=ROWS)
        inputs += int(lengths.sum())
        to_max_length += len(lengths) * max_length
        to_longest += len(lengths) * int(lengths.max())
        for part in (rows[start : start + ROWS] for start in range(0, len(rows), ROWS)):
            packed += len(part) * int(lengths[part[0]].sum())
    shares = (1 - inputs / computed for computed in (to_max_length, to_longest, packed))
    return Padding(batch_size, *shares)


def preview_of(examples: Examples, tokenizer: Any) -> Preview:
    """Decode two examples, part by part: what is trained, and what is only read."""
    shown = []
    for index in range(min(2, len(examples))):
        example = examples[index]
        ids, mask = example.input_ids[:SHOWN], example.loss_mask[:SHOWN]
        bounds = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
        shown.append(
            tuple(
                (tokenizer.decode(ids[start:end]), bool(mask[start]))
                for start, end in zip(bounds, bounds[1:], strict=False)
            )
        )
    return tuple(shown)


def _listed(files: tuple[str, ...]) -> str:
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    return files[0] + more
