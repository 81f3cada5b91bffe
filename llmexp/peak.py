"""How fast this machine multiplies matrices: what the arithmetic of a model is held against."""

import hashlib
import json
import logging
import math
import os
import platform
import time
from pathlib import Path

import torch

from llmexp import durable

log = logging.getLogger("llmexp")

SECONDS = 0.15  # of measuring
ROWS = {"cpu": 256, "cuda": 4096}  # of the product: enough to fill the machine
GROUP = {"cpu": 1, "cuda": 16}  # products between two looks at the clock: on a GPU looking costs


def peak(device: torch.device, dtype: torch.dtype, *, width: int, anew: bool = False) -> float:
    """Return the FLOP/s that matrix products `width` wide reach on `device` in `dtype`.

    Measured once per machine, number format, thread count, width and torch version, then read from
    the user's cache; `anew`: measured in any case. NaN where that is not possible, never an error.
    The random state of torch stays as it is. Waits for the GPU.
    """
    try:
        key = conditions(device, dtype, width)
        path = place(key)
        known = math.nan if anew else read(path, key)
        if math.isnan(known):
            known = measure(device, dtype, width)
            if device.type == "cuda":
                torch.cuda.empty_cache()  # the run finds the memory as it was
            keep(path, {**key, "flops_per_second": known})
        return known
    except Exception as problem:  # a number to look at must not cost a run
        log.debug(f"the peak of this machine is not known: {problem}")
        return math.nan


def measure(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Return the FLOP/s of the fastest products [rows, width] x [width, width] of a short while.

    The fastest: what else runs on the machine makes some of them slow.
    """
    own = torch.Generator(device).manual_seed(0)  # noise, as zeros need less power
    rows, group = ROWS[device.type], GROUP[device.type]
    left = torch.randn(rows, width, device=device, generator=own).to(dtype)
    right = torch.randn(width, width, device=device, generator=own).to(dtype)
    out = torch.empty(rows, width, device=device, dtype=dtype)
    best, began, seconds = math.inf, time.perf_counter(), 0.0
    torch.mm(left, right, out=out)  # the first one sets things up
    while seconds < SECONDS:
        started = _clock(device)
        for _ in range(group):
            torch.mm(left, right, out=out)
        ended = _clock(device)
        best, seconds = min(best, ended - started), ended - began
    return group * 2 * rows * width * width / best


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def conditions(device: torch.device, dtype: torch.dtype, width: int) -> dict[str, str | int]:
    """Return all that the peak depends on."""
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else processor(),
        "dtype": str(dtype),
        "float32": torch.backends.cuda.matmul.fp32_precision if is_gpu else "ieee",  # or tf32
        "threads": 0 if is_gpu else torch.get_num_threads(),
        "width": width,
        "torch": str(torch.__version__),
    }


def processor() -> str:
    """Return the name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def place(key: dict[str, str | int]) -> Path:
    """Return the file of the user's cache where the peak under such conditions is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return Path(base) / "llmexp" / "peak" / f"{name}.json"


def read(path: Path, key: dict[str, str | int]) -> float:
    """Return the peak that a file holds, NaN where it holds none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return math.nan
    if not isinstance(content, dict) or not key.items() <= content.items():
        return math.nan
    known = content.get("flops_per_second")
    return known if isinstance(known, float) and 0 < known < math.inf else math.nan


def keep(path: Path, content: dict[str, str | int | float]) -> None:
    """Write a peak so that readers see all of it or nothing; a cache may also be read-only."""
    try:
        durable.make_folder(path.parent)
        durable.write_json(path, content)
    except OSError as problem:
        log.debug(f"the peak of this machine is not kept: {problem}")
