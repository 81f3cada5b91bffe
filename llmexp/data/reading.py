"""One reading of the source: files of any format become rendered examples."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llmexp.data.chat import Chat
from llmexp.data.files import digest
from llmexp.data.hub import HubSource
from llmexp.data.records import Record, json_records, parquet_records, table_records
from llmexp.data.render import Rendered, Renderer, shape_of
from llmexp.data.text import Notes, TextOptions, pieces

Source = list[Path] | HubSource

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

    def shape(self, source: Source) -> str:
        """Return the shape of the first record. Raises RequestError where no shape fits."""
        if self.format == "text":
            return TEXT
        first = next(self._records(source, Notes()), None)
        return TEXT if first is None else shape_of(first, self.columns)

    def examples(
        self, source: Source, *, shape: str, chat: Chat, notes: Notes
    ) -> Iterator[Rendered]:
        """Read and render the examples, or pieces of long ones; raises RequestError with file and line."""
        if self.format == "text":
            assert isinstance(source, list)
            for path in source:
                for text, ends in pieces(path, self.example, self.options, notes):
                    yield Rendered(text, None, ends)
            return
        render = Renderer(shape, self.columns, self.loss_on, chat)
        for record in self._records(source, notes):
            rendered = render(record)
            if rendered is None:
                notes.blank += 1
            else:
                yield rendered

    def _records(self, source: Source, notes: Notes) -> Iterator[Record]:
        if isinstance(source, HubSource):
            yield from source.records(notes)
            return
        for path in source:
            if self.format == "jsonl":
                yield from json_records(path, self.options, notes)
            elif self.format == "csv":
                yield from table_records(path, self.options, notes)
            else:
                yield from parquet_records(path, notes)


def identity(source: Source) -> list[str]:
    """Return digests that change when a byte of the source changes, and not when it moves."""
    return source.identity() if isinstance(source, HubSource) else [digest(path) for path in source]


def names(source: Source) -> tuple[str, ...]:
    """Return what a person calls the source's files."""
    return (source.spec,) if isinstance(source, HubSource) else tuple(map(str, source))


def size(source: Source) -> int:
    """Return the bytes that a reading passes over."""
    if isinstance(source, HubSource):
        return source.size
    return sum(path.stat().st_size for path in source)


def count_up_to(examples: Iterator[Rendered], limit: int) -> int:
    """Count the examples of a source, and stop at `limit`."""
    count, is_start = 0, True
    for example in examples:
        count += is_start
        if count == limit:
            break
        is_start = example.ends
    return count
