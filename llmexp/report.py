"""What a run leaves for a person: report.md in words, loss.png as a picture. Made from the run's
own files."""

import io
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmexp import doctor, durable
from llmexp.console.words import one_line, perplexity
from llmexp.doctor.curves import number
from llmexp.forecast import spread

Rows = Sequence[Mapping[str, Any]]
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>()#|!~&$]")
AT_MOST = "; 100% is what matrix products as wide as the model reach on this device"
TIMES = 6  # validations whose samples are shown


def write(folder: Path, notes: Mapping[str, Sequence[str]], about: doctor.About) -> None:
    """Write report.md and loss.png into a run folder.

    `notes` are the sections that only the run itself can tell: title -> lines; `about` is what the
    doctor knows beside the files.
    """
    metrics, damaged = rows(folder / "metrics.jsonl")
    timing, _ = rows(folder / "timing.jsonl")
    samples, _ = rows(folder / "samples.jsonl")
    picture = draw(metrics, folder / "loss.png")
    seen = doctor.curves(metrics, timing, samples)
    lines = [f"# {folder.name}", "", doctor.summary(seen), ""]
    lines += ["![loss](loss.png)", ""] if picture else []
    lines += diagnosis(seen, about)
    lines += validations(seen)
    lines += speed(timing)
    lines += ["", f"{damaged} damaged lines of metrics.jsonl were skipped."] if damaged else []
    for title, note in notes.items():
        lines += ["", f"## {title}", "", "```", *note, "```"]
    durable.write_text(folder / "report.md", "\n".join([*lines, *texts(samples)]) + "\n")


def rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a file of the run and how many were damaged; none where there is no
    file."""
    return durable.read_lines(path) if path.is_file() else ([], 0)


def diagnosis(seen: doctor.Curves, about: doctor.About) -> list[str]:
    """Return what is not well with the run, and what to try."""
    lines = ["## Diagnosis", ""]
    found = doctor.diagnose(seen, about)
    for finding in found:
        lines += [f"**{finding.name}**: {finding.says}.", ""]
        lines += [f"1. `{cause.override}`: {cause.why}" for cause in finding.causes] + [""]
    return lines if found else [*lines, "Nothing found that is not well.", ""]


def validations(seen: doctor.Curves) -> list[str]:
    """Return each validation in words and in numbers."""
    lines = ["## Validations", "", *(f"- {line}" for line in doctor.lines(seen)), ""]
    lines += ["| step | epoch | train loss since the last validation | validation loss "]
    lines[-1] += "| perplexity |"
    lines += ["|---|---|---|---|---|"]
    columns = (seen.val_step, seen.val_epoch, seen.train_before, seen.val)
    for step, epoch, train, loss in zip(*columns, strict=True):
        cells = [int(step), epoch, train, loss, perplexity(loss)]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return lines


def speed(timing: Rows) -> list[str]:
    """Return how fast the run was, and what it made of the machine."""
    kinds = (
        ("perf/tokens_per_second", ",.0f", "tokens/s", ""),
        ("perf/mfu", ".1%", "model FLOP utilisation", AT_MOST),
        ("perf/data_share", ".1%", "of the time of the steps spent waiting for data", ""),
    )
    lines = []
    for name, form, words, remark in kinds:
        column = [number(row.get(name)) for row in timing]
        known = [value for value in column if math.isfinite(value)]
        if known:
            low, middle, high = (f"{value:{form}}" for value in spread(known))
            lines.append(f"- {middle} {words} ({low} to {high}){remark}")
    told = "Medians of the logged rows, and in brackets their 10th and 90th percentiles."
    return ["", "## Speed", "", *lines, "", told] if lines else []


def texts(samples: Rows) -> list[str]:
    """Return how the text that was generated from each prompt changed with the steps."""
    samples = [row for row in samples if {"train/global_step", "prompt", "text"} <= set(row)]
    steps = list(dict.fromkeys(row["train/global_step"] for row in samples))
    last = len(steps) - 1
    shown = {steps[round(last * part / (TIMES - 1))] for part in range(TIMES)} if steps else set()
    lines = ["", "## Text over time"] if steps else []
    for prompt in dict.fromkeys(row["prompt"] for row in samples):
        lines += ["", f"**{_quoted(prompt)}** ...", "", "| step | text |", "|---|---|"]
        for row in samples:
            if row["prompt"] == prompt and row["train/global_step"] in shown:
                lines.append(f"| {row['train/global_step']:,} | {_quoted(row['text'])} |")
    return lines


def _cell(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "" if math.isnan(value) else f"{value:,.4g}"


def _quoted(text: str) -> str:
    """Return generated text as a cell of a table: nothing in it is markdown, HTML or control."""
    return _MARKDOWN.sub(lambda found: f"&#{ord(found[0])};", one_line(text))


def draw(metrics: Rows, path: Path) -> bool:
    """Draw train loss, validation loss and learning rate over the steps; False where there is
    nothing yet."""
    train = _series(metrics, "train/loss")
    validation = _series(metrics, "eval/loss")
    if not train and not validation:
        return False
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a screen, whatever MPLBACKEND says
    axes = figure.add_subplot()
    axes.plot(*_columns(train), color="tab:blue", alpha=0.7, label="train")
    axes.plot(
        *_columns(validation), color="tab:orange", marker="o", markersize=4, label="validation"
    )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    rate = axes.twinx()
    rate.plot(
        *_columns(_series(metrics, "train/learning_rate")),
        color="tab:gray",
        linestyle=":",
        label="learning rate",
    )
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    handles = [*axes.get_legend_handles_labels()[0], *rate.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="upper right")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    durable.write_bytes(path, image.getvalue())
    return True


def _series(metrics: Rows, key: str) -> list[tuple[int, float]]:
    return [
        (row["train/global_step"], row[key])
        for row in metrics
        if isinstance(row.get(key), (int, float))
    ]


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
