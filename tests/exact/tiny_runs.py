"""Tiny runs: in this process, in a fork that dies, and as the real command; and what they left."""

import hashlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from hydra import compose, initialize_config_dir

from llmexp import job, request
from llmexp.sweep.trial import NullTrial

LINES = [
    f"{who} {does} {what} {number}."
    for number in ("once", "twice", "today")
    for who in ("the cat", "a small bird", "my old friend", "she")
    for does in ("sees", "likes")
    for what in ("the sea", "one red apple and some bread", "it")
]
TINY = (
    "model.architecture={n_layer:1,n_head:2,n_embd:16,n_positions:64,vocab_size:320}",
    "model.dropout=0.1",
    *("data=text", "data.path=lines.txt", "data.max_length=32", "data.cache_dir=cache"),
    *("samples.prompts=[the]", "samples.max_new_tokens=2"),
    *("train.log_every=1", "train.max_steps=6", "train.validate_every=0.5"),
    *("logger=none", "hw=cpu", "precision=fp32"),
)
LEFT = (
    *("metrics.jsonl", "samples.jsonl", "validation_losses.safetensors"),
    *("final/model.safetensors", "best/model.safetensors"),
)


def train(name: str, *overrides: str) -> float:
    """Run the whole job in this process, in outputs/<name>; the settings pass the same checks."""
    line = [*TINY, f"run.name={name}", *overrides]
    with initialize_config_dir(str(request.CONF), version_base="1.3"):
        settings = request.resolved(compose("train", line))
    return job.train(settings, Path("outputs") / name, line, NullTrial())


def command(name: str, *overrides: str) -> list[str]:
    """Return the same as a command line."""
    return [sys.executable, "-m", "llmexp.train", *TINY, f"run.name={name}", *overrides]


def environment() -> dict[str, str]:
    """Return the environment of such a process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(request.CONF.parent)}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the real command to its end."""
    return subprocess.run(
        arguments, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )


def digest(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of what a run promises to the byte."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in LEFT}


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def child(work: Callable[[], object]) -> int:
    """Do the work in a fork; return its exit code, 128 + n if signal n ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status
