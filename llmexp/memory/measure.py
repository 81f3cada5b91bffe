"""Numbers of traced steps: from the file that ships, from the user's cache, or traced now.

A result names its setting, rows and passes, and the versions of torch and transformers; those in
the user's cache also the code that was traced.
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
from llmexp.memory.setting import Setting

log = logging.getLogger("llmexp")
SHIPPED = Path(__file__).with_name("measured.json")
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
    result = shipped().get(request.key)
    if result is None:
        try:
            result = json.loads(_cached(request).read_text())
        except (OSError, ValueError):
            return False
        if not _is_whole(result, request):
            return False
    seen[request.key] = result
    return True


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
    _keep(_cached(request), result)
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
    """Return the numbers that ship, if they were measured with the versions at hand."""
    try:
        content = json.loads(SHIPPED.read_text())
    except FileNotFoundError:
        return {}
    return dict(content["results"]) if content["versions"] == versions() else {}


@functools.cache
def _code() -> str:
    """Return a name for the code that is traced: the same for other comments and docstrings."""
    here = Path(__file__).parent
    names = ("engine", "loss", "optimizer", "precision", "validation")
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


def _cached(request: Request) -> Path:
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
