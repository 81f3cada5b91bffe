"""What glibc is told changes where memory comes from, and how much of it: no result."""

import os
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from llmexp import heap

glibc = pytest.mark.skipif(
    not heap.keep_freed_blocks(), reason="another C library keeps its memory as it likes"
)
anew = pytest.mark.skipif(
    not heap.is_glibc() or any(map(os.path.exists, heap.GPUS)), reason="of no use here"
)
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
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
    if PAGES.is_file() and "[always]" in PAGES.read_text():
        pytest.skip("the kernel hands out larger pages here, and this says nothing")
    untouched = ask(FAULTS + "used()")
    touched = ask(f"from llmexp import heap{FAULTS}heap.touch(SIZE).join(); used()")
    pages = SIZE // resource.getpagesize()
    assert untouched[0] > 0.9 * pages
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


STARTS = """
import os, sys
names = "GLIBC_TUNABLES", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
with open(os.environ["STARTS"], "a") as file:
    print(os.getpid(), *(os.environ.get(name) for name in names), file=file)
"""
FORGETS = "os.environ.pop('GLIBC_TUNABLES', None)\n"  # as glibc makes a process with privileges
LOSES = "sys.executable = '/no/such/python'\n"


def untold() -> dict[str, str]:
    """Return this environment without what a command that begins anew is told."""
    told = {heap.TUNABLES, *heap.PLANS}
    return {name: value for name, value in os.environ.items() if name not in told}


def starts(folder: Path, *words: str, does: str = "", **environment: str) -> list[list[str]]:
    """Run Python with these words; return, of each start of an interpreter, the number of the
    process and what it is told."""
    (folder / "sitecustomize.py").write_text(STARTS + does)
    (folder / "starts").unlink(missing_ok=True)
    paths = {"PYTHONPATH": f"{folder}:{Path(heap.__file__).parents[1]}"}
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env=untold() | paths | {"STARTS": str(folder / "starts")} | environment,
    )
    assert done.returncode == 0, done.stderr
    assert "max_length" in done.stdout
    return [line.split() for line in (folder / "starts").read_text().splitlines()]


TRAIN = "-X", "utf8", "-m", "llmexp.train", "--cfg", "job"


@anew
def test_training_begins_anew_once_in_the_same_process(tmp_path: Path) -> None:
    before, after = starts(tmp_path, *TRAIN)
    assert before == [before[0], "None", "None"]
    assert after == [before[0], heap.NO_CACHE, "128"]


@anew
def test_so_does_the_script(tmp_path: Path) -> None:
    script = tmp_path / heap.SCRIPT
    script.write_text("from llmexp.train import main\nmain()\n")
    before, after = starts(tmp_path, str(script), "--cfg", "job")
    assert after == [before[0], heap.NO_CACHE, "128"]


@anew
def test_what_the_user_tells_stays(tmp_path: Path) -> None:
    theirs = {heap.TUNABLES: "glibc.malloc.arena_max=2", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7"}
    _, after = starts(tmp_path, *TRAIN, **theirs)
    assert after[1:] == [f"glibc.malloc.arena_max=2:{heap.NO_CACHE}", "7"]
    for told in (heap.NO_CACHE, "glibc.malloc.tcache_count=3"):
        assert len(starts(tmp_path, *TRAIN, **{heap.TUNABLES: told})) == 1


@anew
def test_it_never_begins_for_ever(tmp_path: Path) -> None:
    assert len(starts(tmp_path, *TRAIN, does=FORGETS)) == 2


@anew
def test_it_goes_on_where_it_cannot_begin_anew(tmp_path: Path) -> None:
    for executable in (LOSES, "sys.executable = ''\n"):
        assert len(starts(tmp_path, *TRAIN, does=executable)) == 1


@anew
def test_a_profiler_sees_one_start(tmp_path: Path) -> None:
    output = str(tmp_path / "profile")
    assert len(starts(tmp_path, "-m", "cProfile", "-o", output, *TRAIN[2:])) == 1


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("-m llmexp.train a -m b", "a -m b"),
        ("-X dev -W error -u -m llmexp.train", ""),
        ("/usr/bin/llmexp-train a", "a"),
    ],
)
def test_a_command_is_plain(words: str, given: str) -> None:
    assert heap.is_plain(["python", *words.split()], ["train.py", *given.split()])


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("tool.py -m llmexp.train a", "a"),
        ("-X dev tool.py -m llmexp.train", ""),
        ("tool.py -m", "-m"),
        ("-m pdb -m llmexp.train a", "a"),
        ("-m other a", "a"),
        ("-c code -m llmexp.train", "-m llmexp.train"),
        ("- -m llmexp.train", "-m llmexp.train"),
        ("llmexp/train.py a", "a"),
        ("tool.py /usr/bin/llmexp-train a", "a"),
        ("/usr/bin/llmexp-train a", "b"),
        ("llmexp-train -sc query=bash", "-sc query=bash"),
        ("-m llmexp.train --help", "--help"),
        ("", ""),
        ("", "a b c"),
    ],
)
def test_what_another_program_runs_is_not(words: str, given: str) -> None:
    assert not heap.is_plain(["python", *words.split()], ["train.py", *given.split()])


@anew
@pytest.mark.slow
def test_memory_does_not_grow_with_the_shapes_that_a_run_sees(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmexp.train", "precision=bf16", "logger=none", "run.name=it"]
    command += ["train.max_steps=320", "train.log_every=1", "train.validate_first=false"]
    command += ["train.validate_every=1000"]
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(command, cwd=tmp_path, env=untold(), stdout=log, stderr=log)
    rows = tmp_path / "outputs" / "it" / "metrics.jsonl"
    held: dict[int, int] = {}  # MiB, by the number of the step
    while child.poll() is None:
        step = rows.read_bytes().count(b"\n") if rows.is_file() else 0
        with suppress(OSError, IndexError):  # it has ended
            pages = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1])
            held.setdefault(step, pages * resource.getpagesize() >> 20)
        time.sleep(0.02)
    assert child.returncode == 0, (tmp_path / "log").read_text()
    early, late = (min(held, key=lambda step: abs(step - wanted)) for wanted in (200, 310))
    assert late - early > 90
    assert held[late] - held[early] < 40, held  # oneDNN's kernels are all there after 150
