"""Runs as text: a table for the terminal, Markdown, CSV, JSON."""

import csv
import io
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmexp.compare.paired import Interval, compared, sentence
from llmexp.compare.runs import Run, differences
from llmexp.console.words import number, one_line, printable
from llmexp.validation import FILE

WIDE = 4  # differing settings that stand in the first table; more have a table of their own
CELL = 40  # characters of a setting
WHOLE = ("at step", "steps", "tokens/s")  # columns that are whole numbers
TEXTS = ("data.name", "data.path", "data.validation_path", "data.val_size", "seed")
PAIRS = 24  # runs that are compared with the best one


@dataclass(frozen=True)
class Comparison:
    """What is to be said of some runs, the best one first."""

    runs: Sequence[Run]
    settings: Mapping[str, list[Any]]  # that differ: key -> a value per run
    pairs: Sequence[tuple[Run, Run, Interval | int]]
    notes: Sequence[str]


def comparison(runs: Sequence[Run]) -> Comparison:
    """Put runs in order, and compare those that kept a loss per validation example."""
    ranked = sorted(runs, key=lambda run: (math.isnan(run.best), run.best))
    kept = [run for run in ranked if run.losses is not None][: PAIRS + 1]
    pairs = [
        (other, kept[0], compared(other.losses, kept[0].losses))
        for other in kept[1:]
        if other.losses is not None and kept[0].losses is not None
    ]
    return Comparison(ranked, differences(ranked), pairs, notes(ranked, kept))


def notes(runs: Sequence[Run], kept: Sequence[Run]) -> list[str]:
    """Return what a reader should know before trusting the numbers."""
    found = [f"{run.name} {run.state}: {run.error}" for run in runs if run.error]
    found += [
        f"{run.name}: {run.damaged} damaged line{'s' if run.damaged > 1 else ''} of metrics.jsonl "
        "skipped"
        for run in runs
        if run.damaged
    ]
    lacking = [run.name for run in runs if run.losses is None]
    if len(runs) > 1 and lacking:
        found.append(
            f"no run kept a loss per validation example ({FILE}), so it is not said "
            "whether one is better by more than chance"
            if len(lacking) == len(runs)
            else f"no loss per validation example ({FILE}) of {', '.join(lacking)}: not said "
            "whether they are better or worse by more than chance"
        )
    elif len(kept) > 1:
        found.append(
            "an interval is about these two models and this kind of text; another seed gives "
            "another model"
        )
    if len(runs) - len(lacking) > len(kept):
        found.append(f"only the best {len(kept)} are held against the best one: name fewer runs")
    differ = [key for key in TEXTS if len({str(run.settings.get(key)) for run in runs}) > 1]
    if differ:
        verb = "differ" if len(differ) > 1 else "differs"
        found.append(f"{', '.join(differ)} {verb}: were the runs validated on the same text?")
    if len({str(run.settings.get("model.name")) for run in runs}) > 1:
        found.append("model.name differs: losses per token compare only where the tokens are alike")
    return found


def header(told: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the columns of the first table and a row per run."""
    own = list(told.settings) if len(told.settings) <= WIDE else []
    names = list(told.runs[0].numbers)
    names = [n for n in names if any(not math.isnan(run.numbers[n]) for run in told.runs)]
    rows = []
    for place, run in enumerate(told.runs):
        cells = [_number(name, run.numbers[name]) for name in names]
        chosen = [shown(told.settings[key][place]) for key in own]
        rows.append([run.name, run.state, *cells, *chosen])
    return ["run", "state", *names, *map(one_line, own)], rows


def text(told: Comparison) -> str:
    """Return the comparison for a terminal."""
    parts = [aligned(*header(told))]
    if len(told.settings) > WIDE:
        parts.append("What differs:\n" + aligned(*transposed(told)))
    parts += sections(told)
    return printable("\n\n".join(parts), "utf-8")


def sections(told: Comparison) -> list[str]:
    """Return what is said below the tables: verdicts, findings, notes, W&B."""
    found = [sentence(a.name, b.name, pair) for a, b, pair in told.pairs]
    well = [
        f"{run.name}: {finding.name}: {finding.says}"
        for run in told.runs
        for finding in run.findings
    ]
    parts = {"Is it better?": found, "Not well:": well, "Note:": told.notes, "W&B:": wandb(told)}
    return [
        title + "\n" + "\n".join(f"  {line}" for line in lines)
        for title, lines in parts.items()
        if lines
    ]


def wandb(told: Comparison) -> list[str]:
    """Return how to see the same in W&B."""
    found = []
    groups = {
        (run.settings.get("logger.project"), run.settings.get("logger.group") or run.study)
        for run in told.runs
        if run.settings.get("logger.project") and run.settings.get("logger.mode") != "disabled"
    }
    for project, group in sorted(groups, key=str):
        where = f"group {group}" if group else "no group: logger.group=NAME keeps runs together"
        found.append(f"project {project}, {where}")
    offline = [shlex.quote(str(run.folder)) for run in told.runs if is_offline(run)]
    if offline:
        places = " ".join(f"{folder}/wandb/offline-run-*" for folder in offline)
        found.append(f"upload what was written offline: wandb sync {places}")
    if not groups:
        found.append("these runs were not logged there: logger=wandb logger.group=NAME does it")
    return found


def is_offline(run: Run) -> bool:
    """Say whether a run left W&B files that wait to be uploaded."""
    return any((run.folder / "wandb").glob("offline-run-*"))


def transposed(told: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the differing settings, a row per setting and a column per run."""
    rows = [[one_line(key), *map(shown, values)] for key, values in told.settings.items()]
    return ["setting", *(run.name for run in told.runs)], rows


def markdown(told: Comparison) -> str:
    """Return the comparison as Markdown."""
    parts = [piped(*header(told))]
    if len(told.settings) > WIDE:
        parts.append(piped(*transposed(told)))
    lists = [
        [sentence(a.name, b.name, pair) for a, b, pair in told.pairs],
        list(told.notes),
    ]
    parts += ["\n".join(f"- {_escaped(line)}" for line in lines) for lines in lists if lines]
    return "\n\n".join(parts)


def comma_separated(told: Comparison) -> str:
    """Return a line per run with every number and every differing setting."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = list(told.runs[0].numbers)
    writer.writerow(["run", "folder", "state", *names, *told.settings])
    for place, run in enumerate(told.runs):
        numbers = ["" if math.isnan(value) else value for value in run.numbers.values()]
        chosen = [told.settings[key][place] for key in told.settings]
        cells = [json.dumps(v) if isinstance(v, list | dict) else v for v in chosen]
        writer.writerow([run.name, run.folder, run.state, *numbers, *cells])
    return out.getvalue().rstrip("\n")


def as_json(told: Comparison) -> str:
    """Return the comparison as JSON; what is not known is null."""
    value = {
        "runs": [
            {
                "run": run.name,
                "folder": str(run.folder),
                "state": run.state,
                "error": run.error,
                **{k: v if math.isfinite(v) else None for k, v in run.numbers.items()},
                "damaged_lines": run.damaged,
                "findings": [asdict(finding) for finding in run.findings],
                "settings": {key: told.settings[key][place] for key in told.settings},
            }
            for place, run in enumerate(told.runs)
        ],
        "pairs": [
            {"run": a.name, "against": b.name}
            | ({"examples": pair} if isinstance(pair, int) else asdict(pair))
            | {"says": sentence(a.name, b.name, pair)}
            for a, b, pair in told.pairs
        ],
        "notes": list(told.notes),
        "wandb": wandb(told),
    }
    return json.dumps(spelled(value), indent=2, default=str, allow_nan=False)


def spelled(value: Any) -> Any:
    """Copy data with the numbers that JSON does not have as text, as metrics.jsonl has them."""
    if isinstance(value, Mapping):
        return {str(key): spelled(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(held) for held in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def aligned(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for the terminal; numbers stand right."""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    right = [all(_is_number(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for cells in [names, ["-" * width for width in widths], *rows]:
        parts = [
            cell.rjust(width) if number_column else cell.ljust(width)
            for cell, width, number_column in zip(cells, widths, right, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def piped(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(_escaped, cells)) + " |" for cells in lines)


def shown(value: Any, width: int = CELL) -> str:
    """Return a setting as a cell: a long one loses its middle, as names of files differ late."""
    text = "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    text, half = one_line(text), (width - 3) // 2
    return text if len(text) <= width else f"{text[:half]}...{text[-half:]}"


def _number(name: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if name in WHOLE else number(value)


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(".", "").replace("e-", "").isdigit()


def _escaped(cell: str) -> str:
    for char in "\\|<>`*_[]":
        cell = cell.replace(char, f"\\{char}" if char not in "<>" else f"&#{ord(char)};")
    return cell
