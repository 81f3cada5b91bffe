"""What wandb leaves in <run folder>/wandb: one folder for each time the run was opened."""

import shlex
from pathlib import Path

_REFUSALS = (
    b"filestream: fatal error",
    b"filestream: json decode error",  # whatever answered is no W&B server
    b"runfiles: CreateRunFiles returned error",
)


def supersede(folder: Path) -> None:
    """Move the fragments in `folder` away, so that the next one alone is the run."""
    for old in sorted(folder.glob("*run-*-*")):
        if old.is_dir() and not old.is_symlink():
            (folder / "superseded").mkdir(exist_ok=True)
            old.rename(folder / "superseded" / old.name)


def sync_command(fragment: Path) -> str:
    """Return what to type to upload a fragment; wandb skips one that was online unless told."""
    here = Path.cwd()
    shown = fragment.relative_to(here) if fragment.is_relative_to(here) else fragment
    option = "" if fragment.name.startswith("offline-") else "--include-online "
    return f"wandb sync {option}{shlex.quote(str(shown))}"


def was_refused(fragment: Path) -> bool:
    """Tell whether the server took less than it was sent; wandb says so in its own log only."""
    log = fragment / "logs" / "debug-internal.log"
    said = log.read_bytes() if log.is_file() else b""
    return any(trouble in said for trouble in _REFUSALS)
