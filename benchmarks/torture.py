"""python benchmarks/torture.py --kills 200: kill, break and starve a tiny run; does it still end
the same?

    fault              what was done to the run; each time it is started again until it ends
    tried              how many times
    finished           runs that came to their end
    differ             of those, files that are not byte for byte those of the run nobody touched:
                       metrics.jsonl, samples.jsonl, final and best weights
    lost               times a valid checkpoint was gone after a kill without a newer one there

Then 20 kills of the real command, and of Hugging Face's Trainer with the same model, steps and
checkpoint interval: each is killed up to a second after it wrote a row, and started again as its
manual says. This part wants `accelerate` (pip install accelerate), and is left out without it.
Writes benchmarks/results/torture.md. POSIX only.
"""

import argparse
import contextlib
import datetime
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torture_peer import against_trainer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "exact")]

LONG = ("train.max_steps=60", "checkpoint.every_steps=5", "train.validate_every=2", "resume=auto")


def main() -> None:
    """Run every part, print the tables and write them down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="kill -9 at random instants")
    parser.add_argument("--peer-kills", type=int, default=20, help="of the command, and of Trainer")
    parser.add_argument("--every", type=int, default=9, help="fail at every so many operations")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    target = (given.out / "torture.md").resolve()
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        from tiny_runs import LINES

        Path("lines.txt").write_text("\n".join(LINES))
        count = operations_of_a_run()
        table = [("fault", "tried", "finished", "differ", "lost")]
        for row in every_fault(given, count):
            table.append(row)
            print(*row, sep=" | ", file=sys.stderr, flush=True)
        report = rows(table)
        if given.peer_kills:
            second, words = against_trainer(given.peer_kills)
            report += ["", *rows(second), "", words]
    minutes = (time.monotonic() - began) / 60
    report = [*heading(given, minutes), *report]
    print("\n".join(report))
    target.write_text("\n".join(report) + "\n")


def every_fault(given: argparse.Namespace, count: int) -> Iterator[tuple[object, ...]]:
    """Yield a row of the first table as soon as it is known."""
    yield random_kills(given.kills)
    yield from operations(given.every, count)
    yield damages()


def heading(given: argparse.Namespace, minutes: float) -> list[str]:
    """Say when, where and with what."""
    packages = [f"{name} {installed(name)}" for name in ("torch", "transformers", "accelerate")]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return [
        f"# python benchmarks/torture.py --kills {given.kills} --every {given.every}",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} CPU cores, one thread, no GPU, {minutes:.0f} "
        f"minutes. llmexp at {commit}, Python {platform.python_version()}, {', '.join(packages)}.",
        "",
    ]


def installed(name: str) -> str:
    """Return a package's version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"


def rows(table: list[tuple[object, ...]]) -> list[str]:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in table]
    return [lines[0], "|" + "---|" * len(table[0]), *lines[1:]]


# -- the run in a fork of this process: no import to wait for ------------------------------------


def start(name: str, *overrides: str, around: Callable[[], object] | None = None) -> int:
    """Start a run in a child; return its process number."""
    from tiny_runs import train

    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        with contextlib.ExitStack() as stack:
            if around is not None:
                stack.enter_context(around())  # type: ignore[arg-type]
            train(name, *overrides)
        code = 0
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a child; return its exit code, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def newest(name: str) -> int:
    """Return the step of the newest valid checkpoint, -1 where there is none."""
    from llmexp import checkpoint

    path = checkpoint.newest(Path("outputs") / name / "checkpoints")[0]
    return -1 if path is None else int(path.name.removeprefix("step-"))


def differing(name: str, expected: dict[str, str]) -> int:
    """Count the files that are not those of the run nobody touched."""
    from tiny_runs import digest

    found = digest(Path("outputs") / name)
    return sum(found[file] != expected[file] for file in expected)


def reference(name: str, *overrides: str) -> dict[str, str]:
    """Run without a fault; return the digest of what it left."""
    from tiny_runs import digest

    assert ended(start(name, *overrides)) == 0
    return digest(Path("outputs") / name)


def random_kills(count: int) -> tuple[object, ...]:
    """Kill runs at random instants of their whole life until `count` kills are spent."""
    began = time.monotonic()
    expected = reference("calm", *LONG)
    life = time.monotonic() - began
    chance, kills, finished, differ, lost = random.Random(0), 0, 0, 0, 0
    while kills < count:
        shutil.rmtree("outputs/killed", ignore_errors=True)
        for attempt in range(1000):
            before = newest("killed")
            pid = start("killed", *LONG)
            if kills < count and attempt < 12:
                time.sleep(chance.uniform(0, 0.8 * life))
                os.kill(pid, signal.SIGKILL)  # a zombie takes it as well
            code = ended(pid)
            kills += code == -signal.SIGKILL
            lost += newest("killed") < before
            if code != -signal.SIGKILL:
                break
        finished += code == 0
        differ += differing("killed", expected) if code == 0 else 0
    return "kill -9 at a random instant", kills, finished, differ, lost


def operations_of_a_run() -> int:
    """Count them; what is imported here need not be imported in every child."""
    from tiny_runs import train

    from llmexp.durable import faults

    with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
        return len(faults.operations(lambda: train("counted")))


def operations(every: int, count: int) -> Iterator[tuple[object, ...]]:
    """Fail at the n-th operation on the disk of a whole run, then start it again."""
    from llmexp.durable import faults

    expected = reference("plain")

    def death(number: int, power_cut: bool) -> Callable[[], object]:
        return lambda: faults.hooked(faults._Death(number, power_cut))

    def error(number: int, code: int) -> Callable[[], object]:
        return lambda: faults.failing(number, code)

    kinds: dict[str, Callable[[int], Callable[[], object]]] = {
        "kill": lambda number: death(number, False),
        "power cut (what is not synced is lost)": lambda number: death(number, True),
        "ENOSPC": lambda number: error(number, faults.ERRORS["ENOSPC"]),
        "EIO": lambda number: error(number, faults.ERRORS["EIO"]),
    }
    for shift, (kind, fault) in enumerate(kinds.items()):
        tried = finished = differ = lost = 0
        for number in range(shift, count, every):
            shutil.rmtree("outputs/broken", ignore_errors=True)
            ended(start("broken", around=fault(number)))
            before = newest("broken")
            code = ended(start("broken", "resume=auto"))
            tried, finished = tried + 1, finished + (code == 0)
            differ += differing("broken", expected) if code == 0 else 0
            lost += newest("broken") < before
        what = f"{kind} at every {every}th of {count} operations on the disk"
        yield what, tried, finished, differ, lost


def damages() -> tuple[object, ...]:
    """Damage each file of the newest checkpoint; the one before has to do."""
    expected = reference("sound")
    tried = finished = differ = 0
    for file in sorted(Path("outputs/sound/checkpoints/step-00000006").iterdir()):
        data = file.read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 3] ^= 1
        half = len(data) // 2
        for damage in (bytes(flipped), data[:half], data[:half] + bytes(len(data) - half), b""):
            shutil.rmtree("outputs/damaged", ignore_errors=True)
            shutil.copytree("outputs/sound", "outputs/damaged")
            (Path("outputs/damaged/checkpoints/step-00000006") / file.name).write_bytes(damage)
            code = ended(start("damaged", "resume=auto"))
            tried, finished = tried + 1, finished + (code == 0)
            differ += differing("damaged", expected) if code == 0 else 0
    return (
        "one file of the newest checkpoint flipped, cut, zeroed or empty",
        tried,
        finished,
        differ,
        0,
    )


if __name__ == "__main__":
    main()
