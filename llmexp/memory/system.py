"""The memory that this process can have, as the system and its control groups (containers) tell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")


def available() -> int | None:
    """Return the bytes that this process can have, with those that it has already, or None where
    nobody says."""
    told = (_free_in_system(), *map(free_in_group, _groups()))
    free = [size for size in told if size is not None]
    return min(free) + held() if free else None


def _free_in_system() -> int | None:
    found = _numbers(Path("/proc/meminfo")).get("MemAvailable:")
    if found is not None:
        return found * 1024
    try:  # macOS: all of it, the system swaps out what it can
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _groups() -> Iterator[Path]:
    """Yield the control groups (v2) of this process from the innermost on."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            group = GROUPS / line.removeprefix("0::/")
            while group.is_relative_to(GROUPS):
                yield group
                group = group.parent


def free_in_group(group: Path) -> int | None:
    """Return the bytes that a control group (v2) leaves, cached files let go; None where it sets no
    limit."""
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # "max"
        return None
    return max(0, limit - used) + _numbers(group / "memory.stat").get("inactive_file", 0)


def held() -> int:
    """Return the bytes that are this process's alone, 0 where nobody says."""
    return _numbers(Path("/proc/self/status")).get("RssAnon:", 0) * 1024


def _numbers(path: Path) -> dict[str, int]:
    """Read a file of names and whole numbers, as the kernel writes them; other lines are left
    out."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}
