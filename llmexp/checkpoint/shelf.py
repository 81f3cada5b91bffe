"""The folder of checkpoints: what is whole, what is newest, what may go."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from llmexp import durable
from llmexp.errors import RequestError, RunError

FORMAT = 1
MANIFEST = "manifest.json"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


class SaveError(RunError):
    """The disk refused; the checkpoints that are there are whole, and training may go on."""


def defect(path: Path) -> str | None:
    """Say what is wrong with a checkpoint, naming the file; None: every byte is as written."""
    wrong, files = _read_manifest(path)
    if wrong:
        return wrong
    for name, entry in files.items():
        try:
            found = durable.sha256(path / name)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != entry["sha256"]:
            return f"{name} is damaged: its SHA-256 is not the one in {MANIFEST}"
    return None


def newest(folder: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Return the newest valid checkpoint or None, and what is wrong with each one after it."""
    rejected: list[tuple[Path, str]] = []
    for path in _steps(folder):
        wrong = defect(path)
        if wrong is None:
            return path, rejected
        rejected.append((path, wrong))
    return None, rejected


def find(where: Path) -> tuple[Path, list[str]]:
    """Return the checkpoint that a run folder or a checkpoint's own folder means, and notes.

    Raises RequestError when there is none that can be used; nothing is deleted.
    """
    if where.is_file():
        raise RequestError(_refused_file(where))
    if not where.is_dir():
        raise RequestError(f"resume={where}: there is no such folder")
    if (where / MANIFEST).exists() or _is_step(where):
        if wrong := defect(where):
            raise RequestError(f"resume={where} cannot be used: {wrong}")
        return where, []
    folder = where / "checkpoints" if (where / "checkpoints").is_dir() else where
    path, rejected = newest(folder)
    notes = [f"{bad} is not used: {wrong}" for bad, wrong in rejected]
    if path is None:
        raise RequestError(_none_valid(where, notes))
    return path, notes


def prune(folder: Path, keep: int = 2, *, best_step: int | None = None) -> list[Path]:
    """Remove all but the `keep` newest checkpoints and that of `best_step`; return those removed.

    The newest valid one is read back, hash for hash, before anything goes. Raises SaveError.
    """
    steps = _steps(folder)
    complete = [path for path in steps if _read_manifest(path)[0] is None]
    if len(complete) <= keep:
        return []
    valid = next((path for path in complete if defect(path) is None), None)
    if valid is None:
        return []
    oldest = min(valid, *complete[:keep])
    doomed = [path for path in steps if path < oldest and _step_of(path) != best_step]
    _remove(doomed)
    return doomed


def remove_after(folder: Path, step: int) -> list[Path]:
    """Remove the checkpoints after `step`, which a run continued from there writes anew."""
    doomed = [path for path in _steps(folder) if _step_of(path) > step]
    _remove(doomed)
    return doomed


def _remove(doomed: list[Path]) -> None:
    for path in doomed:
        try:
            durable.remove_directory(path)
        except OSError as error:
            raise SaveError(f"{path} could not be removed: {error.strerror}") from error


def path_of(folder: Path, step: int) -> Path:
    """Return where the checkpoint of `step` lies, or would lie, in `folder`."""
    return folder / f"step-{step:08d}"


def _steps(folder: Path) -> list[Path]:
    # newest first
    return sorted((path for path in folder.glob("step-*") if _is_step(path)), reverse=True)


def _is_step(path: Path) -> bool:
    return path.is_dir() and re.fullmatch(r"step-\d{8}", path.name) is not None


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def manifest(files: dict[str, dict[str, Any]]) -> bytes:
    """Write size and SHA-256 by file name, and the manifest's own hash: any changed byte shows."""
    own = hashlib.sha256(durable.encode(files)).hexdigest()
    return durable.encode({"format": FORMAT, "files": files, "sha256": own}, indent=1)


def _read_manifest(path: Path) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """Check the manifest and the sizes; return what is wrong, and size and SHA-256 by file name."""
    try:
        data = (path / MANIFEST).read_bytes()
    except FileNotFoundError:
        return f"{MANIFEST} is missing: a save that never finished, or no checkpoint of llmexp", {}
    except OSError as error:
        return f"{MANIFEST} cannot be read: {error.strerror}", {}
    try:
        content = json.loads(data)
        form, files = content["format"], content["files"]
        names = set(files)
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged", {}
    if form != FORMAT:
        return f"{MANIFEST} has format {form}, this version reads {FORMAT}", {}
    if data != manifest(files) or names != {MODEL, OPTIMIZER, STATE}:
        return f"{MANIFEST} is damaged", {}
    for name, entry in files.items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size is None:
            return f"{name} is missing", {}
        if size != entry["size"]:
            return f"{name} has {size:,} bytes, {entry['size']:,} were written", {}
    return None, files


def _refused_file(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix in {".pt", ".pth", ".bin", ".pkl", ".ckpt"} or start in (b"PK", b"\x80\x02"):
        return (
            f"resume={path} is a pickle, and reading one can run any code that is in it. llmexp "
            "continues only from its own checkpoints: resume=outputs/<run>"
        )
    return f"resume={path} is a file; a checkpoint is a folder: resume=outputs/<run>"


def _none_valid(where: Path, notes: list[str]) -> str:
    told = "\n".join(f"  {note}" for note in notes)
    if told:
        return f"resume={where}: not one checkpoint can be used, and none was deleted:\n{told}"
    if any(where.glob("*.pt")) or (where / "config.json").exists():
        return (
            f"resume={where} is no run of llmexp, it looks like a model folder. To start from its "
            f"weights: model=hf model.weights={where}"
        )
    return f"resume={where}: there is no checkpoint in it"
