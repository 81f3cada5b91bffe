"""Numbers of traced steps: from the file that ships, from the user's cache, or traced now.

A result names its setting, rows and passes. Those in the user's cache name the code that was
traced too: ours, and the versions of torch and transformers. Those that ship hold for one version
of torch, and for every version of transformers with which some probes allocate what they did.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmexp import durable
from llmexp.memory.setting import Setting, gpt2_config, make

log = logging.getLogger("llmexp")
SHIPPED = Path(__file__).with_name("measured.json")
PROBED = {"n_layer": 3, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
Result = dict[str, Any]  # what llmexp.memory.trace.__main__.measure returns; bytes
seen: dict[str, Result] = {}  # by Request.key: what this process has asked for


class Unmeasurable(Exception):
    """A setting could not be traced; the message says why."""


@dataclass(frozen=True)
class Request:
    """One traced step: `passes` (1, or 2 for any more) micro-batches of `rows` rows."""

    setting: Setting
    rows: int
    passes: int

    @property
    def key(self) -> str:
        """Return its name in the file that ships."""
        return self.setting.key(self.rows, self.passes)


def measure(requests: Sequence[Request]) -> list[Result]:
    """Return the numbers of every request; what is not known is traced, a few seconds each.

    Raises Unmeasurable.
    """
    wanted = {request.key: request for request in requests}
    missing = [request for key, request in wanted.items() if key not in seen and not _find(request)]
    if missing:
        for request, result in zip(missing, trace(missing), strict=True):
            seen[request.key] = result
    return [seen[request.key] for request in requests]


def _find(request: Request) -> bool:
    """Look for the numbers of a request where they are kept."""
    # the key first: of another family nothing ships, so it does not matter here whether that holds
    result = shipped().get(request.key) if request.key in _file(SHIPPED)["results"] else None
    if result is None:
        result = _cached(request)
    if result is None:
        return False
    seen[request.key] = result
    return True


def _cached(request: Request) -> Result | None:
    """Return the numbers of a request from the user's cache."""
    try:
        result = json.loads(_cache_path(request).read_text())
    except (OSError, ValueError):
        return None
    return dict(result) if _is_whole(result, request) else None


def _is_whole(result: object, request: Request) -> bool:
    """Tell whether these are the numbers of a traced step: a cache may hold anything."""
    if not isinstance(result, dict):
        return False
    full = request.setting.layers is None
    tables = [result.get(name) for name in ("peaks", *(["parts"] if full else []))]
    sizes = [result.get(name) for name in ("allocated", "reserved", "min_cap") if full]
    for table in tables:
        sizes += table.values() if isinstance(table, dict) and table else [None]
    return all(isinstance(size, int) for size in sizes)


def trace(requests: Sequence[Request]) -> list[Result]:
    """Trace the requests in a process of their own, and keep the numbers. Raises Unmeasurable."""
    log.info(f"memory  tracing {len(requests)} steps of this model, once for these settings ...")
    return [_traced(request) for request in requests]


def _traced(request: Request) -> Result:
    worker = _worker()
    assert worker.stdin is not None and worker.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # then there is no answer either
        worker.stdin.write(json.dumps(asdict(request)) + "\n")
        worker.stdin.flush()
    result = dict(json.loads(worker.stdout.readline() or '{"error": "the tracer died"}'))
    if "error" in result:
        raise Unmeasurable(result["error"])
    _keep(_cache_path(request), result)
    return result


def stop() -> None:
    """End the process that traces, if there is one: it holds memory of its own."""
    if _worker.cache_info().currsize:
        _worker().communicate()  # closes its stdin and waits
        _worker.cache_clear()


@functools.cache
def _worker() -> subprocess.Popen[str]:
    """Return the process that traces; it ends when its stdin is closed."""
    return subprocess.Popen(
        [sys.executable, "-m", "llmexp.memory.trace"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that the numbers depend on, without importing anything heavy."""
    return {
        name: importlib.metadata.version(name).partition("+")[0]
        for name in ("torch", "transformers")
    }


@functools.cache
def shipped() -> dict[str, Result]:
    """Return the numbers that ship, if they hold for the versions at hand."""
    content = _file(SHIPPED)
    return dict(content["results"]) if _holds(content) else {}


def shipped_for() -> list[str]:
    """Return the versions of transformers that the numbers which ship are known to hold for."""
    return list(_file(SHIPPED)["versions"]["transformers"]) if shipped() else []


@functools.cache
def _file(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {"versions": {"torch": "", "transformers": []}, "results": {}}


def _holds(content: dict[str, Any]) -> bool:
    """Tell whether a step of today allocates what it did in `content`, the file that ships.

    The kernels are torch's, so its version has to be the same. Most releases of transformers edit
    the code that a step of GPT-2 runs, and few change what it allocates: the source does not tell,
    a trace does. So a version that the file does not name is tried with the probes, once.
    """
    results, known, at_hand = content["results"], content["versions"], versions()
    if known["torch"] != at_hand["torch"]:
        return False
    if at_hand["transformers"] in known["transformers"]:
        return True
    found = [_cached(probe) for probe in probes()]
    pairs = list(zip(probes(), found, strict=True))
    if any(result not in (None, results.get(probe.key)) for probe, result in pairs):
        return False
    if None in found:
        log.info(
            f"memory  do the numbers that ship hold for transformers {at_hand['transformers']}? "
            f"tracing {found.count(None)} steps of GPT-2, once ..."
        )
    try:
        return all((result or _traced(probe)) == results.get(probe.key) for probe, result in pairs)
    except Unmeasurable:
        return False


def probes() -> list[Request]:
    """Return steps that run whatever code of transformers the shipped models run in theirs.

    They are as wide as GPT-2: a trace costs time per operator, not per byte.
    """
    settings = {
        "optimizer": {"_target_": "torch.optim.AdamW", "fused": True},
        "data": {"pack": True, "max_length": 512},
    }
    kinds = (  # with and without checkpointing and dropout, in every number format
        ("bf16", False, 0.1),
        ("fp16", True, 0.1),
        ("fp32", False, 0.0),
        ("bf16_parameters", True, 0.0),
    )
    return [
        Request(make(settings, config, precision=name, checkpointing=checkpointing), 4, 2)
        for name, checkpointing, dropout in kinds
        for config in [gpt2_config(PROBED, dropout)]
    ]


@functools.cache
def _code() -> str:
    """Return a name for the code that is traced: the same for other comments and docstrings."""
    here = Path(__file__).parent
    names = ("engine", "loss", "optimizer", "packed", "precision", "validation")
    above = (here.parent / f"{name}.py" for name in names)
    files = [*above, here / "allocator.py", *sorted((here / "trace").glob("*.py"))]
    text = "".join(ast.dump(_bare(ast.parse(path.read_text()))) for path in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _bare(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [statement for statement in body if not _is_docstring(statement)]
    return tree


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _cache_path(request: Request) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = request.setting.key(request.rows, request.passes, versions(), _code())
    return Path(base) / "llmexp" / "memory" / f"{name}.json"


def _keep(path: Path, result: Result) -> None:
    """Write a result so that readers see all of it or nothing; a cache may also be read-only."""
    try:
        durable.make_folder(path.parent)
        durable.write_json(path, result)
    except OSError as problem:
        log.debug(f"the numbers of a traced step are not kept: {problem}")
