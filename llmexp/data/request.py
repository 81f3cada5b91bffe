"""The request for data, checked before anything else is loaded."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmexp.config import refuse
from llmexp.data import reading
from llmexp.data.files import find
from llmexp.data.hub import HubSource
from llmexp.data.reading import Reading
from llmexp.data.render import COLUMNS
from llmexp.data.sides import Cutting
from llmexp.data.source import Source
from llmexp.data.text import TextOptions

SAMPLE = Path(__file__).parent / "sample"

CHOICES = {
    "format": ("sample", "text", "jsonl", "csv", "parquet", "hf"),
    "example": ("line", "paragraph", "file"),
    "unit": ("example", "block"),
    "overlong": ("split", "truncate", "error"),
    "loss_on": ("completion", "all"),
    "encoding_errors": ("strict", "replace", "skip"),
    "duplicates": ("report", "drop"),
}


def load(
    *,
    name: str,
    format: str,
    path: str | list[str] | None,
    validation_path: str | list[str] | None,
    example: str,
    unit: str,
    max_length: int,
    val_size: float,
    overlong: str,
    pack: bool,
    duplicates: str,
    loss_on: str,
    columns: Mapping[str, str | None],
    encoding_errors: str,
    drop_control: bool,
    cache_dir: str | None,
) -> "Source":
    """Check a request for data and return its source; raises RequestError with all mistakes."""
    chosen = {
        "format": format,
        "example": example,
        "unit": unit,
        "overlong": overlong,
        "loss_on": loss_on,
        "encoding_errors": encoding_errors,
        "duplicates": duplicates,
    }
    mistakes = [*_wrong_choices(chosen), *_wrong_numbers(max_length, val_size)]
    mistakes += [*_wrong_columns(columns), *_without_effect(chosen, columns)]
    train, missing = _found(format, path, key="data.path")
    validation: reading.Origin | None = None
    if validation_path is not None:
        validation, absent = _found(format, validation_path, key="data.validation_path")
        missing += absent
    refuse(mistakes + missing)
    source = Source(
        name,
        train,
        validation,
        Reading(
            format="text" if format == "sample" else format,
            example=example,
            options=TextOptions(encoding_errors, drop_control),
            columns={column: columns.get(column) for column in COLUMNS},
            loss_on=loss_on,
        ),
        Cutting(
            max_length,
            unit,
            "split" if unit == "block" else overlong,
            duplicates,
            None if validation else val_size,
        ),
        pack=pack,
        cache_dir=Path(cache_dir).expanduser() if cache_dir else _user_cache(),
    )
    source.check()
    return source


def _wrong_columns(columns: object) -> Iterator[str]:
    if not isinstance(columns, Mapping):
        yield f"data.columns={columns} is no table of names: set data.columns.text=NAME"
        return
    for column, name in columns.items():
        if column not in COLUMNS:
            yield f"data.columns.{column} does not exist: there are {', '.join(COLUMNS)}"
        elif name is not None and (not isinstance(name, str) or not name):
            yield (f"data.columns.{column}={name} is no name of a column: give it as text, or null")


def _without_effect(chosen: Mapping[str, str], columns: object) -> Iterator[str]:
    """Name settings that would change nothing: who set them expects something else."""
    format, example = chosen["format"], chosen["example"]
    is_plain = format in ("sample", "text")
    for column, name in columns.items() if isinstance(columns, Mapping) and is_plain else ():
        if name not in (column, None):
            yield (
                f"data.columns.{column}={name} has no effect: data={format} has no columns. For "
                "records set data=jsonl, csv, parquet or hf"
            )
    if not is_plain and example in ("paragraph", "file"):
        yield (
            f"data.example={example} has no effect: with data={format} each record is an example. "
            "For documents of plain text set data=text"
        )
    if chosen["unit"] == "block" and chosen["overlong"] in ("truncate", "error"):
        yield (
            f"data.overlong={chosen['overlong']} has no effect: with data.unit=block the text is "
            "cut into blocks, and nothing is over-long. Leave it at split"
        )


def _wrong_choices(chosen: Mapping[str, str]) -> Iterator[str]:
    for key, value in chosen.items():
        if value not in CHOICES[key]:
            yield f"data.{key}={value} does not exist: choose {' or '.join(CHOICES[key])}"


def _wrong_numbers(max_length: int, val_size: float) -> Iterator[str]:
    if max_length < 1:
        yield f"data.max_length={max_length} holds no token: it must be at least 1, for example 512"
    if not 0 < val_size < 1:
        yield (
            f"data.val_size={val_size} is not a fraction of the examples: it lies between 0 and 1, "
            "for example 0.1; for a validation file of your own set data.validation_path"
        )


def _found(format: str, path: object, *, key: str) -> tuple[reading.Origin, list[str]]:
    if format == "sample" and key == "data.path":
        return sorted(SAMPLE.glob("part_*.txt")), [] if path is None else [
            f"data.path={path} has no effect: data=sample is the text that llmexp ships. For a "
            f"file of yours set data=text data.path={path} (or data=jsonl, csv, parquet, hf)"
        ]
    if not path:
        example = "OWNER/NAME or FOLDER" if format == "hf" else "FILE"
        return [], [f"{key} is not set: data={format} needs {key}={example}"]
    if format == "hf" and isinstance(path, str):
        return HubSource(path, key=key), []
    if format == "hf":
        return [], [f"{key}={path} is no name: data=hf reads one dataset, OWNER/NAME:SUBSET@SPLIT"]
    paths = [path] if isinstance(path, str) else path
    if not isinstance(paths, list) or not all(isinstance(entry, str) for entry in paths):
        return [], [
            f"{key}={path} is neither a path nor a list of paths: for a file whose name is a "
            f"number write {key}=./NUMBER"
        ]
    return find(paths, key=key, is_text=format != "parquet")


def _user_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "llmexp"
