"""What a run leaves for a person: report.md in words, loss.png as a picture. Made from the run's
own files."""

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmexp import durable

Rows = Sequence[Mapping[str, Any]]


def write(folder: Path, notes: Mapping[str, Sequence[str]]) -> None:
    """Write report.md and loss.png into a run folder.

    `notes` are the sections that only the run itself can tell: title -> lines.
    """
    metrics, damaged = durable.read_lines(folder / "metrics.jsonl")
    samples = (
        durable.read_lines(folder / "samples.jsonl")[0]
        if (folder / "samples.jsonl").is_file()
        else []
    )
    picture = draw(metrics, folder / "loss.png")
    durable.write_text(
        folder / "report.md", words(folder.name, metrics, samples, notes, damaged, picture)
    )


def words(
    name: str,
    metrics: Rows,
    samples: Rows,
    notes: Mapping[str, Sequence[str]],
    damaged: int,
    picture: bool,
) -> str:
    """Return report.md: the curve, a line per validation, the notes, and the last samples."""
    lines = [f"# {name}", ""]
    lines += ["![loss](loss.png)", ""] if picture else []
    lines += [
        "## Validations",
        "",
        "| step | epoch | train loss since the last row | validation loss | perplexity |",
        "|---|---|---|---|---|",
    ]
    for row in metrics:
        if "eval/loss" in row:
            cells = [
                row["train/global_step"],
                row.get("train/epoch"),
                row.get("train/loss"),
                row["eval/loss"],
                row["eval/perplexity"],
            ]
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    lines += ["", f"{damaged} damaged lines of metrics.jsonl were skipped."] if damaged else []
    for title, note in notes.items():
        lines += ["", f"## {title}", "", "```", *note, "```"]
    if samples:
        last = samples[-1]["train/global_step"]
        lines += ["", f"## Text after step {last:,}", ""]
        for row in samples:
            if row["train/global_step"] == last:
                lines += [f"- **{row['prompt']}**{_quoted(row['text'])}"]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")


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
