"""What a process can have is what is free, with what it holds already, within its container."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmexp.memory import system


def test_memory_is_read_where_the_system_tells() -> None:
    free = system.available()
    assert free is None or 2**20 < free < 2**50


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nobody says")
def test_what_a_process_holds_is_counted() -> None:
    code = (
        "from llmexp.memory import system\n"
        "before = system.held()\n"
        "taken = bytearray(b'x') * 2**28\n"
        "print(before, system.held())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after - before == pytest.approx(2**28, rel=0.05)


@pytest.mark.parametrize(
    ("limit", "used", "stat", "free"),
    [
        ("1000\n", "400\n", "anon 300\ninactive_file 90\n", 690),
        ("1000\n", "1400\n", "", 0),
        ("max\n", "400\n", "", None),
    ],
)
def test_a_container_leaves_what_its_limit_leaves(
    tmp_path: Path, limit: str, used: str, stat: str, free: int | None
) -> None:
    for name, text in (("max", limit), ("current", used), ("stat", stat)):
        (tmp_path / f"memory.{name}").write_text(text)
    assert system.free_in_group(tmp_path) == free


def test_no_group_sets_no_limit(tmp_path: Path) -> None:
    assert system.free_in_group(tmp_path) is None
