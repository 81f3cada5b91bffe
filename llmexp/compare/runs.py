"""Find runs below folders, and read what they left."""

import fcntl
import json
import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmexp import doctor, outcome, validation
from llmexp.console.words import one_line
from llmexp.doctor.curves import Curves, finite, highest, lowest, middle, number
from llmexp.errors import RequestError
from llmexp.logger.redact import redact
from llmexp.logger.titles import group_of
from llmexp.report import rows

DEPTH = 3  # folders below one that is named: multirun/<date>/<time>/<n>
ERROR = 300  # characters of an error that are shown
NAMELESS = {"_target_", "_partial_", "run.name", "resume"}  # settings that tell runs not apart


@dataclass(frozen=True)
class Run:
    """What one run left."""

    folder: Path
    name: str  # as short as tells it from the others
    state: str
    error: str | None  # that it failed with, its first line
    settings: Mapping[str, Any]  # flat: dotted key -> value, secrets taken out
    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    damaged: int  # lines of metrics.jsonl that were skipped
    losses: validation.Losses | None
    curves: Curves
    findings: list[doctor.Finding]
    study: str | None

    @property
    def best(self) -> float:
        """The lowest validation loss, NaN where there is none."""
        return lowest(self.curves.val)

    @property
    def numbers(self) -> dict[str, float]:
        """What a table says of the run; NaN where it is not known."""
        seen = self.curves
        known = len(finite(seen.val)) > 0
        return {
            "best loss": self.best,
            "at step": float(seen.val_step[seen.best]) if known else float("nan"),
            "final loss": float(seen.val[-1]) if len(seen.val) else float("nan"),
            "final train loss": float(seen.train[-1]) if len(seen.train) else float("nan"),
            "steps": float(seen.last_step),
            "tokens/s": middle(seen.speed[len(seen.speed) // 2 :]),
            "peak GiB": highest(seen.peak),
        }


def find(places: Sequence[Path]) -> list[Path]:
    """Return the run folders at or below `places`, in a natural order.

    Raises RequestError with all places that hold none.
    """
    found: list[Path] = []
    mistakes = []
    for place in places:
        here = [place] if is_run(place) else sorted(below(place, DEPTH), key=natural)
        if not here:
            is_file = "is a file" if place.is_file() else "does not exist"
            told = "holds no run" if place.is_dir() else is_file
            mistakes.append(f"{place} {told}: a run folder has .hydra/config.yaml in it")
        known = {run.resolve() for run in found}
        found += [run for run in here if run.resolve() not in known]
    if mistakes:
        raise RequestError("\n".join(mistakes))
    return found


def is_run(folder: Path) -> bool:
    """Say whether a folder is that of a run."""
    return (folder / ".hydra" / "config.yaml").is_file()


def below(folder: Path, depth: int) -> list[Path]:
    """Return the runs below a folder."""
    if depth == 0 or not folder.is_dir():
        return []
    inner = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    runs = [path for path in inner if is_run(path)]
    return runs + [run for path in inner if path not in runs for run in below(path, depth - 1)]


def natural(path: Path) -> list[tuple[int, str]]:
    """Order 2 before 10."""
    return [(int(part) if part.isdigit() else -1, part) for part in path.parts]


def read(folders: Sequence[Path]) -> list[Run]:
    """Read runs. Raises RequestError where one cannot be read, or they have nothing in common."""
    if len(folders) < 2:
        names = [folder.name for folder in folders]
    else:
        common = os.path.commonpath([folder.resolve() for folder in folders])
        names = [str(folder.resolve().relative_to(common)) for folder in folders]
    runs = [read_one(folder, one_line(name)) for folder, name in zip(folders, names, strict=True)]
    refuse_strangers(runs)
    return runs


def refuse_strangers(runs: Sequence[Run]) -> None:
    """Refuse runs of which no two have a metric in common."""
    kinds = [{key for row in run.metrics for key in row} - {"train/global_step"} for run in runs]
    shared = [a & b for i, a in enumerate(kinds) for b in kinds[:i]]
    if shared and not any(shared):
        told = [
            f"  {run.folder}: {', '.join(sorted(map(str, kind))[:6]) or 'no row of metrics yet'}"
            for run, kind in zip(runs, kinds, strict=True)
        ]
        raise RequestError(
            "these runs have nothing in common: no two of them wrote the same metric\n"
            + "\n".join(told)
        )


def read_one(folder: Path, name: str) -> Run:
    """Read what one run left. Raises RequestError where its settings cannot be read."""
    settings = settings_of(folder)
    metrics, damaged = rows(folder / "metrics.jsonl")
    timing, _ = rows(folder / "timing.jsonl")
    samples, _ = rows(folder / "samples.jsonl")
    seen = doctor.curves(metrics, timing, samples)
    state, error = end_of(folder)
    steps = seen.last_step if state in outcome.DONE else 0
    return Run(
        folder=folder,
        name=name,
        state=state,
        error=error,
        settings=flat(settings),
        metrics=[row for row in metrics if has_step(row)],
        timing=timing,
        samples=[row for row in samples if has_step(row) and {"prompt", "text"} <= set(row)],
        damaged=damaged,
        losses=validation.read(folder),
        curves=seen,
        findings=doctor.diagnose(seen, doctor.About(settings, steps)),
        study=study_of(folder),
    )


def has_step(row: Mapping[str, Any]) -> bool:
    """Say whether it is known of which step a row tells."""
    return 0 <= number(row.get("train/global_step")) < math.inf


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings of a run without its secrets."""
    import yaml

    path = folder / ".hydra" / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text(errors="replace"))
    except (OSError, yaml.YAMLError) as error:
        raise RequestError(f"{path} cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise RequestError(f"{path} cannot be used: it holds no settings")
    shown: Any = redact(settings)
    return dict(shown)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif not {name, str(key)} & NAMELESS:
            found[name] = value
    return found


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the settings in which the runs differ: key -> a value per run, None where it has
    none."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def end_of(folder: Path) -> tuple[str, str | None]:
    """Return how a run ended, or that it is running or was killed, and the error it failed with."""
    held = is_held(folder)  # asked first: a run that ends meanwhile has left its word by then
    left = outcome.read(folder)
    if held:
        return "running", None
    if not left:
        return "killed" if held is False else "killed or running", None
    error = one_line(str(left.get("error", "")))[:ERROR]
    return left["outcome"], error or None


def is_held(folder: Path) -> bool | None:
    """Say whether a live process holds a run, None where only another machine can know."""
    try:
        with (folder / ".lock").open("rb") as file:
            signed = file.read()
            if signed and json.loads(signed)["host"] != socket.gethostname():
                return None
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return False


def study_of(folder: Path) -> str | None:
    """Return the study that a run is a trial of, or the multirun that it is a job of."""
    import yaml

    try:
        results = yaml.safe_load((folder.parent / "optimization_results.yaml").read_text())
        return str(results["study"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return group_of(folder)


def seconds_by_step(run: Run) -> dict[float, float]:
    """Return the seconds of training after each step on record."""
    steps = np.array([number(row.get("train/global_step")) for row in run.timing])
    spent = np.array([number(row.get("perf/seconds")) for row in run.timing])
    known = np.isfinite(steps) & np.isfinite(spent)
    return dict(zip(steps[known].tolist(), spent[known].tolist(), strict=True))
