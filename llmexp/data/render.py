"""Records become text, with the part that is trained marked: prompts, instructions, conversations.

The shape is read off the columns of the first record; a column set to null is not looked for.
What comes out is shown in the data report before the first step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from llmexp.data.chat import Chat, Spans, messages_of
from llmexp.data.records import Record
from llmexp.errors import RequestError

# each shape and the columns it needs; the first that fits is taken
SHAPES = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt and completion": ("prompt", "completion"),
    "instruction and output": ("instruction", "output"),
    "text": ("text",),
}
COLUMNS = (
    *("text", "prompt", "completion", "instruction", "input", "output"),
    *("messages", "conversations"),
)


class Rendered(NamedTuple):
    """An example's text, or a piece of it."""

    text: str
    spans: Spans | None = None  # the trained characters; None: all
    ends: bool = True  # the example ends here
    is_stop_trained: bool = True


@dataclass(frozen=True)
class Renderer:
    """Turn the records of one shape into text."""

    shape: str
    columns: Mapping[str, str | None]  # our name of a column: its name in the file
    loss_on: str  # completion | all
    chat: Chat

    def __call__(self, record: Record) -> Rendered | None:
        """Return the text, or None where it is blank. Raises RequestError that names the record."""
        if self.shape == "text":
            text, spans = self._cell(record, "text"), None
        elif self.shape in ("messages", "conversations"):
            text, spans = self._conversation(record)
        else:
            text, spans = self._answer(record)
        if not text or text.isspace():
            return None
        if spans is None or self.loss_on == "all":
            return Rendered(text)
        if not any(text[start:end].strip() for start, end in spans):
            raise RequestError(
                f"{record.where}: nothing to train on: this record has no completion (no assistant "
                "turn, or an empty one). Remove it, or set data.loss_on=all"
            )
        return Rendered(text, spans, is_stop_trained=not text[spans[-1][1] :].strip())

    def _conversation(self, record: Record) -> tuple[str, Spans]:
        messages = messages_of(record.fields.get(self.columns[self.shape] or ""), record.where)
        try:
            return self.chat(messages, is_marked=self.loss_on == "completion")
        except RequestError as error:
            raise RequestError(f"{record.where}: {error}") from None

    def _answer(self, record: Record) -> tuple[str, Spans]:
        if self.shape == "prompt and completion":
            prompt = self._cell(record, "prompt")
            answer = self._cell(record, "completion")
        else:
            prompt = f"### Instruction:\n{self._cell(record, 'instruction')}\n\n"
            context = self._cell(record, "input") if self._has(record, "input") else ""
            prompt += f"### Input:\n{context}\n\n" if context else ""
            prompt += "### Response:\n"
            answer = self._cell(record, "output")
        if prompt and answer and not prompt[-1].isspace() and not answer[0].isspace():
            prompt += "\n"
        return prompt + answer, ((len(prompt), len(prompt) + len(answer)),)

    def _has(self, record: Record, column: str) -> bool:
        return self.columns[column] in record.fields

    def _cell(self, record: Record, column: str) -> str:
        name = self.columns[column]
        if name not in record.fields:
            raise RequestError(
                f"{record.where}: this record has no column {name!r}, which the first one has: "
                "add it, or remove the record"
            )
        value = record.fields[name]
        if value is None:
            return ""
        if not isinstance(value, str):
            raise RequestError(
                f"{record.where}: column {name!r} holds {type(value).__name__}, not text: "
                f"name another with data.columns.{column}=..."
            )
        return value


def shape_of(record: Record, columns: Mapping[str, str | None]) -> str:
    """Return the shape of a record, one with a column that the user named before others.

    Raises RequestError that names the columns the record has.
    """
    there = ", ".join(map(repr, record.fields)) or "none"
    named = {ours: name for ours, name in columns.items() if name not in (ours, None)}
    for ours, name in named.items():
        if name not in record.fields:
            raise RequestError(
                f"{record.where}: data.columns.{ours}={name}, and there is no such column: found "
                f"{there}"
            )
    for shape in sorted(SHAPES, key=lambda shape: not _columns_of(shape) & named.keys()):
        if all(columns[column] in record.fields for column in SHAPES[shape]):
            return shape
    raise RequestError(
        f"{record.where}: found the columns {there}, and none of the "
        "shapes llmexp reads: text; prompt and completion; instruction and output; messages; "
        "conversations. Say which is which, for example data.columns.text=NAME, or "
        "data.columns.prompt=NAME data.columns.completion=NAME"
    )


def _columns_of(shape: str) -> set[str]:
    return {*SHAPES[shape], *(["input"] if "instruction" in SHAPES[shape] else [])}
