"""One HTML file that shows runs side by side: no network, no library, nothing but the numbers."""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmexp.compare.paired import sentence
from llmexp.compare.runs import Run, seconds_by_step
from llmexp.compare.table import Comparison, shown, wandb
from llmexp.console.words import one_line, printable
from llmexp.doctor import lines, summary
from llmexp.doctor.curves import Floats, Row, column, number

HERE = Path(__file__).parent
POINTS = 1500  # of a curve; longer ones are averaged
WIDTH = 400  # characters of a setting
SAMPLES = 400  # rows of generated text per run, the last ones
METRICS = (  # name, title, unit
    ("train/loss", "Training loss", "nats per token"),
    ("eval/loss", "Validation loss", "nats per token"),
    ("train/learning_rate", "Learning rate", ""),
    ("train/grad_norm", "Gradient norm", "before clipping"),
    ("perf/tokens_per_second", "Speed", "tokens per second"),
    ("memory/peak_gib", "Peak memory", "GiB"),
)


def html(told: Comparison) -> str:
    """Return the page. Whatever a config or a sample holds, it stays text."""
    style, script = ((HERE / f"page.{kind}").read_text() for kind in ("css", "js"))
    parts = {
        "POLICY": f"default-src 'none'; style-src '{pinned(style)}'; script-src '{pinned(script)}'",
        "STYLE": style,
        "SCRIPT": script,
        "DATA": embedded(content(told)),
    }
    page = (HERE / "page.html").read_text()
    before, *rest = page.split("{{")
    done = [before]
    for piece in rest:
        name, _, after = piece.partition("}}")
        done += [parts[name], after]
    return "".join(done)


def pinned(text: str) -> str:
    """Return the hash by which a browser runs this text and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def content(told: Comparison) -> dict[str, Any]:
    """Return all that the page shows."""
    return {
        "metrics": [
            {"key": key, "title": title, "unit": unit}
            for key, title, unit in METRICS
            if any(key in row for run in told.runs for row in [*run.metrics, *run.timing])
        ],
        "runs": [one(run) for run in told.runs],
        "settings": [
            {"key": one_line(key), "values": [shown(value, WIDTH) for value in values]}
            for key, values in told.settings.items()
        ],
        "verdicts": [
            {
                "says": sentence(a.name, b.name, pair),
                "decided": not isinstance(pair, int) and pair.decided,
            }
            for a, b, pair in told.pairs
        ],
        "notes": list(told.notes),
        "wandb": wandb(told),
    }


def one(run: Run) -> dict[str, Any]:
    """Return what the page shows of one run."""
    spent = seconds_by_step(run)
    return {
        "name": run.name,
        "folder": str(run.folder),
        "state": run.state,
        "numbers": {k: v if math.isfinite(v) else None for k, v in run.numbers.items()},
        "curves": {
            key: curve([*run.metrics, *run.timing], key, run.metrics, spent)
            for key, _, _ in METRICS
        },
        "summary": summary(run.curves),
        "lines": lines(run.curves),
        "findings": [
            {"name": found.name, "says": found.says, "tries": found.lines()}
            for found in run.findings
        ],
        "samples": [
            {
                "step": int(number(row["train/global_step"])),
                "prompt": printable(str(row["prompt"]), "utf-8"),
                "text": printable(str(row["text"]), "utf-8"),
            }
            for row in run.samples[-SAMPLES:]
        ],
    }


def curve(
    rows: Sequence[Row], key: str, metrics: Sequence[Row], spent: dict[float, float]
) -> dict[str, list[float | None]]:
    """Return one curve: steps, tokens, seconds, values; None where a number is missing."""
    known = [row for row in rows if math.isfinite(number(row.get(key)))]
    steps = column(known, "train/global_step")
    trained = [row for row in metrics if "train/tokens" in row]
    at, tokens = column(trained, "train/global_step"), column(trained, "train/tokens")
    known_at = np.isfinite(at) & np.isfinite(tokens)
    at, tokens = np.insert(at[known_at], 0, 0.0), np.insert(tokens[known_at], 0, 0.0)
    columns = [
        steps,
        np.interp(steps, at, tokens),
        np.array([spent.get(step, math.nan) for step in steps.tolist()]),
        column(known, key),
    ]
    named = zip(("step", "tokens", "seconds", "value"), columns, strict=True)
    return {name: rounded(thinned(values)) for name, values in named}


def thinned(values: Floats) -> Floats:
    """Return at most POINTS values, each the mean of its neighbours."""
    if len(values) <= POINTS:
        return values
    edges = np.linspace(0, len(values), POINTS + 1).astype(int)
    return np.add.reduceat(values, edges[:-1]) / np.diff(edges)


def rounded(values: Floats) -> list[float | None]:
    """Return numbers as JSON has them, with 6 significant digits."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
