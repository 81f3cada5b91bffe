"""One reading of the source: files of any format become rendered examples."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llmexp import durable
from llmexp.data.chat import Chat
from llmexp.data.hub import HubSource
from llmexp.data.records import Record, json_records, parquet_records, table_records
from llmexp.data.render import Rendered, Renderer, shape_of
from llmexp.data.text import Notes, TextOptions, cleaned, pieces
from llmexp.errors import RequestError

Origin = list[Path] | HubSource

TEXT = "text"  # the shape of plain text


@dataclass(frozen=True)
class Reading:
    """How a source is read."""

    format: str  # text | jsonl | csv | parquet | hf
    example: str  # of a text file: line | paragraph | file
    options: TextOptions
    columns: Mapping[str, str | None]
    loss_on: str  # completion | all

    def described(self) -> dict[str, object]:
        """Return what the rendered examples depend on, JSON-able."""
        described: dict[str, object] = {"format": self.format, "options": asdict(self.options)}
        if self.format == "text":
            return described | {"example": self.example}
        return described | {"columns": dict(self.columns), "loss_on": self.loss_on}

    def told(self, shape: str) -> str:
        """Say in words what an example is, and what is trained of it."""
        if self.format == "text":
            return {"line": "lines", "paragraph": "paragraphs", "file": "whole files"}[self.example]
        if shape == TEXT or self.loss_on == "all":
            return f"{shape}, all of it trained"
        return f"{shape}, the loss on the completion"

    @property
    def emptiness(self) -> str:
        """Say in words that there is no example, and what to do."""
        if self.format == "text":
            return "holds nothing but blanks: give a file with text"
        if self.format == "csv":
            return (
                "holds no row with text: a table is a line of column names, and a row for each "
                "example after it"
            )
        return "holds no record with text: give one with at least two"

    def shape(self, origin: Origin) -> str:
        """Return the shape of the first record. Raises RequestError where no shape fits."""
        if self.format == "text":
            return TEXT
        first = next(self._records(origin, Notes()), None)
        return TEXT if first is None else shape_of(first, self.columns)

    def examples(
        self, origin: Origin, *, shape: str, chat: Chat, notes: Notes
    ) -> Iterator[Rendered]:
        """Read and render the examples, or pieces of long ones.

        Raises RequestError with file and line.
        """
        if isinstance(origin, list) and self.format == "text":
            for path in origin:
                for text, ends in pieces(path, self.example, self.options, notes):
                    yield Rendered(text, None, ends)
            return
        render = Renderer(shape, self.columns, self.loss_on, chat)
        for record in self._records(origin, notes):
            readable = self._cleaned(record, notes)
            rendered = readable and render(readable)
            if rendered:
                yield rendered
            else:
                notes.blank += readable is not None

    def _records(self, origin: Origin, notes: Notes) -> Iterator[Record]:
        if isinstance(origin, HubSource):
            yield from origin.records(notes)
            return
        for path in origin:
            if self.format == "jsonl":
                yield from json_records(path, self.options, notes)
            elif self.format == "csv":
                yield from table_records(path, self.options, notes)
            else:
                yield from parquet_records(path, notes)

    def _cleaned(self, record: Record, notes: Notes) -> Record | None:
        columns = self.columns.values()
        try:
            fields = {
                name: cleaned(value, self.options, notes)
                for name, value in record.fields.items()
                if name in columns
            }
        except UnicodeEncodeError as error:
            if self.options.encoding_errors == "skip":
                notes.undecodable += 1
                return None
            raise RequestError(
                f"{record.where}: half a surrogate pair is no character ({error.reason}): mend the "
                "record, or set data.encoding_errors=replace or skip"
            ) from None
        return Record(record.where, fields)


def identity(origin: Origin) -> list[str]:
    """Return digests that change when a byte of the source changes, and not when it moves."""
    if isinstance(origin, HubSource):
        return origin.identity()
    try:
        return [durable.sha256(path) for path in origin]
    except OSError as error:
        raise RequestError(
            f"{error.filename} cannot be read any more ({error.strerror}): bring it back"
        ) from error


def check_unchanged(origin: Origin, before: list[str]) -> None:
    """Raise RequestError where files are no longer those whose `identity` was `before`."""
    if isinstance(origin, HubSource):
        return
    for path, one, other in zip(origin, before, identity(origin), strict=True):
        if one != other:
            raise RequestError(
                f"{path} was changed while it was read, so nobody knows what was: let it come to "
                "rest, or copy it, and start again"
            )


def names(origin: Origin) -> tuple[str, ...]:
    """Return what a person calls the origin's files."""
    return (origin.spec,) if isinstance(origin, HubSource) else tuple(map(str, origin))


def size(origin: Origin) -> int:
    """Return the bytes that a reading passes over."""
    if isinstance(origin, HubSource):
        return origin.size
    return sum(path.stat().st_size for path in origin)


def count_up_to(examples: Iterator[Rendered], limit: int) -> int:
    """Count the examples of a source, and stop at `limit`."""
    count, is_start = 0, True
    for example in examples:
        count += is_start
        if count == limit:
            break
        is_start = example.ends
    return count
