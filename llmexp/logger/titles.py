"""What a run is called where others see it: by its folder, its multirun, and what was asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNTOLD = ("resume=", "hydra.", "logger", "hw")  # how it runs, not what it is


def name_of(folder: Path) -> str:
    """Return the name of a run's folder and the overrides behind it.

    Of a job of a multirun those that not all jobs share; none where the person named the run.
    """
    return " ".join([folder.name, *_own(folder)])


def group_of(folder: Path) -> str | None:
    """Return the multirun that a run is a job of as a person knows it, None where it is of none."""
    parent = folder.parent
    return "/".join(parent.parts[-2:]) if (parent / "multirun.yaml").is_file() else None


def _own(folder: Path) -> Iterator[str]:
    overrides = _read(folder / ".hydra" / "overrides.yaml")
    shared: Any = _read(folder.parent / "multirun.yaml")
    for name in ("hydra", "overrides", "task"):
        shared = shared.get(name) if isinstance(shared, dict) else None
    if not isinstance(overrides, list) or any(str(o).startswith("run.name=") for o in overrides):
        return
    for override in map(str, overrides):
        if override not in (shared or ()) and not override.lstrip("+").startswith(UNTOLD):
            yield override


def _read(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, yaml.YAMLError):
        return None
