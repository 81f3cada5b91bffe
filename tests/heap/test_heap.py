"""What glibc is told changes where memory comes from, and how much of it: no result."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmexp import heap

glibc = pytest.mark.skipif(
    not heap.keep_freed_blocks(), reason="another C library keeps its memory as it likes"
)
anew = pytest.mark.skipif(
    not heap.is_glibc() or any(map(os.path.exists, heap.GPUS)), reason="of no use here"
)
SIZE = 256 << 20


def ask(code: str, **environment: str) -> list[int]:
    """Return the numbers that a fresh process prints."""
    command = [sys.executable, "-c", f"import resource, torch\nSIZE = {SIZE}\n{code}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return [int(word) for word in done.stdout.split()]


FAULTS = """
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def used():
    before = faults()
    kept = [torch.ones(SIZE // 16) for _ in range(4)]  # all of it, in float32
    print(faults() - before)
"""


@glibc
def test_what_was_touched_is_what_tensors_get() -> None:
    untouched = ask(FAULTS + "used()")
    touched = ask(f"from llmexp import heap{FAULTS}heap.touch(SIZE).join(); used()")
    pages = SIZE // 4096
    assert untouched[0] > 0.9 * pages  # else pages are larger here, and this says nothing
    assert touched[0] < 0.1 * pages


@glibc
def test_it_is_taken_once() -> None:
    code = "from llmexp import heap; heap.touch(SIZE).join()\n" + FAULTS
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024"
    first, _, last = ask(f"{code}print({peak}); used(); print({peak})")
    assert last - first < 0.1 * SIZE


def test_little_is_not_worth_a_thread() -> None:
    assert heap.touch(heap.WORTH - 1) is None


@glibc
def test_more_than_there_is_is_left() -> None:
    assert heap.touch(1 << 60) is None


# What a training step does to the heap: a large block comes and goes, and a few bytes stay.
STEPS = """
import ctypes
from llmexp import heap
heap.keep_freed_blocks()
library = ctypes.CDLL(None)
library.sbrk.restype, library.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_long]
end = library.sbrk(0)
for step in range(20):
    large = torch.empty(SIZE // 4, dtype=torch.uint8)
    kept = [library.malloc(size) for size in range(24, 120, 8) for _ in range(8)]
    del large
print((library.sbrk(0) - end) // (SIZE // 4))
"""


@glibc
def test_a_freed_block_fits_again_where_a_few_bytes_have_stayed() -> None:
    told = {heap.TUNABLES: heap.NO_CACHE}
    assert ask(STEPS, **told)[0] <= 2  # blocks: one, and what the heap grows by at least


COMMAND = """
import os, sys
from llmexp import heap
sys.orig_argv = [sys.executable, "-c", sys.argv[1], *sys.argv[2:]]
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), flush=True)
heap.begin_anew()
print("goes on")
"""
AGAIN = "import os, sys; print(os.getpid(), os.environ['GLIBC_TUNABLES'], *sys.argv[1:])"


def begun(*words: str, **environment: str) -> list[list[str]]:
    """Return what is printed by a command of these words, and by the one it becomes."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, AGAIN, *words],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != heap.TUNABLES}
        | environment,
    )
    return [line.split() for line in done.stdout.splitlines()]


@anew
def test_a_command_begins_anew_once_in_the_same_process() -> None:
    before, after = begun("-m", "llmexp.train", "a=1 2")
    assert before[1] == "None"
    assert after == [before[0], heap.NO_CACHE, "-m", "llmexp.train", "a=1", "2"]


@anew
def test_what_the_user_tells_glibc_stays() -> None:
    _, after = begun("-m", "llmexp.train", GLIBC_TUNABLES="glibc.malloc.arena_max=2")
    assert after[1] == f"glibc.malloc.arena_max=2:{heap.NO_CACHE}"
    for theirs in (heap.NO_CACHE, "glibc.malloc.tcache_count=3"):
        _, after = begun("-m", "llmexp.train", GLIBC_TUNABLES=theirs)
        assert after == ["goes", "on"]


@pytest.mark.parametrize("words", [["x.py", "-m"], ["-m", "pdb", "-m", "llmexp.train"], []])
def test_a_debugger_and_other_programs_go_on(words: list[str]) -> None:
    assert begun(*words)[-1] == ["goes", "on"]


@anew
def test_training_begins_anew(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmexp.train", "train.max_steps=100000", "logger=none"]
    environment = {name: value for name, value in os.environ.items() if name != heap.TUNABLES}
    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        told = Path(f"/proc/{child.pid}/environ").read_bytes().decode().split("\0")
        assert f"{heap.TUNABLES}={heap.NO_CACHE}" in told
    finally:
        child.kill()
        child.communicate()
