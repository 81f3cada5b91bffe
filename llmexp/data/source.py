"""A source of text: what a request for data becomes, and what becomes of it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmexp.data import reading as readings
from llmexp.data.chat import Chat, plain, templated
from llmexp.data.examples import Examples
from llmexp.data.files import CR_ALONE
from llmexp.data.progress import Progress
from llmexp.data.ranges import SideFacts
from llmexp.data.reading import TEXT, Reading
from llmexp.data.render import Rendered
from llmexp.data.report import DataReport, Padding, Preview, padding_of, preview_of
from llmexp.data.sides import Cutting, cut, opened
from llmexp.data.store import Facts, Store, cached, key_of
from llmexp.data.text import Notes
from llmexp.data.tokens import Encoder, write_tokens
from llmexp.errors import RequestError

_MORE = (
    "add others, or set data.validation_path=FILE (of a text file, data.example=line or paragraph "
    "may find more)"
)


@dataclass(frozen=True)
class Corpus:
    """What a run trains on, and what it is judged by."""

    train: Examples
    validation: Examples
    report: DataReport
    fingerprint: str  # another one means other examples


@dataclass(frozen=True)
class Source:
    """A source of text that exists and can be read."""

    name: str  # for people and folder names
    train: readings.Origin
    validation: readings.Origin | None  # None: a share of train, by content
    reading: Reading
    cutting: Cutting
    pack: bool
    cache_dir: Path

    @property
    def max_length(self) -> int:
        """The inputs that a row holds, and an example has, at most."""
        return self.cutting.max_length

    def check(self) -> None:
        """Read the first examples. Raises RequestError if they are too few, or cannot be read."""
        self._check("data.path", self.train, needed=1 if self.validation else 2)
        if self.validation is not None:
            self._check("data.validation_path", self.validation, needed=1)

    def _check(self, key: str, origin: readings.Origin, *, needed: int) -> None:
        found = readings.count_up_to(self._examples(origin, plain(""), Notes()), needed)
        named = f"{key}={', '.join(readings.names(origin)[:3])}"
        if found == 0:
            raise RequestError(f"{named} {self.reading.emptiness}")
        if found < needed:
            has_cr = any("\r" in text for text, *_ in self._examples(origin, plain(""), Notes()))
            raise RequestError(
                f"{named} holds a single example, too few for training and validation: "
                + (CR_ALONE if has_cr and self.reading.example == "line" else _MORE)
            )

    def texts(self) -> Iterator[str]:
        """Yield the texts of data.path, long ones in pieces, for training a tokenizer."""
        for example in self._examples(self.train, plain(""), Notes()):
            yield example.text

    def tokenize(
        self, tokenizer: Any, *, cache_dir: Path | None = None, seed: int = 42, batch_size: int = 1
    ) -> Corpus:
        """Tokenise, split and cut, or map what was done before.

        tokenizer: a fast one of transformers. seed: of the split. batch_size: train.batch_size;
        the training examples must fill at least one. Raises RequestError with file and line.
        """
        root = cache_dir or self.cache_dir
        encoder = Encoder(tokenizer)
        chat = templated(tokenizer) if tokenizer.chat_template else plain(tokenizer.eos_token)
        train = self._tokens(self.train, encoder, chat, root=root)
        validation = None
        if self.validation is not None:
            validation = self._tokens(self.validation, encoder, chat, root=root)
        ranges = cut(train, validation, self.cutting, seed=seed, root=root)
        unit = self.cutting.unit
        examples = opened("train", train, ranges, unit=unit)
        if len(examples) < batch_size:
            raise RequestError(
                f"{len(examples):,} training {unit}s do not fill one step of train.batch_size="
                f"{batch_size}: add data, or lower train.batch_size"
            )
        report = self._report(
            [train] if validation is None else [train, validation],
            ranges.facts,
            padding=padding_of(examples, batch_size=batch_size, max_length=self.max_length),
            preview=preview_of(examples, tokenizer),
            end_of_text=str(tokenizer.eos_token),
        )
        return Corpus(
            examples,
            opened("validation", validation or train, ranges, unit=unit),
            report,
            key_of([train.digest, validation and validation.digest, ranges.digest]),
        )

    def _examples(self, origin: readings.Origin, chat: Chat, notes: Notes) -> Iterator[Rendered]:
        return self.reading.examples(origin, shape=self.shape, chat=chat, notes=notes)

    @cached_property
    def shape(self) -> str:
        """What the first record looks like: text, prompt and completion, ..."""
        return self.reading.shape(self.train)

    def _tokens(
        self, origin: readings.Origin, encoder: Encoder, chat: Chat, *, root: Path
    ) -> Store:
        identity = readings.identity(origin)
        described = [identity, self.reading.described(), encoder.identity]

        def build(folder: Path) -> Facts:
            notes = Notes()
            with Progress(readings.size(origin), "tokenising") as progress:
                facts = write_tokens(
                    folder,
                    self._examples(origin, chat, notes),
                    encoder,
                    is_masked=self.shape != TEXT and self.reading.loss_on == "completion",
                    notes=notes,
                    reach=progress.reach,
                )
            readings.check_unchanged(origin, identity)
            return facts

        return cached(root, f"tokens-{key_of(described)[:32]}", build)

    def _report(
        self,
        stores: list[Store],
        ranges: Facts,
        *,
        padding: Padding,
        preview: Preview,
        end_of_text: str,
    ) -> DataReport:
        notes = Counter[str]()
        for store in stores:
            notes.update(store.facts["notes"])
        return DataReport(
            name=self.name,
            files=readings.names(self.train),
            shape=self.reading.told(self.shape),
            cutting=self.cutting,
            train=SideFacts(**ranges["train"]),
            validation=SideFacts(**ranges["validation"]),
            duplicates=ranges["duplicates"],
            overlap=ranges["overlap"],
            notes=notes,
            end_of_text=end_of_text,
            documents=sum(store.facts["documents"] for store in stores),
            stops=sum(store.facts["stops"] for store in stores),
            padding=padding,
            preview=preview,
        )
