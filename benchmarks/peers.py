"""llmexp and its peers on the same work, beside each other and beside the machine's limit.

    python benchmarks/peers.py [--work a,b,c,d] [--precision fp32,bf16] [--dropout 0.1,0]
        [--peers llmexp,tutorial,...] [--steps N] [--rounds R] [--text FILE] [--tokenizer FOLDER]
        [--smallest] [--here] [--output FILE.md]

GPT-2 of 124 million fresh weights, the same for all, and the same examples in the same order. The
peers get an environment of their own (benchmarks/.peers); one that cannot be installed is named
with the reason. Every run is a process of its own; rounds go A B C, C B A, ... and ratios are those
of a round. On two cores everything takes days: name one work, or fewer steps.

Short lines travel as each contestant likes it: padded to the full length (tutorial), to the longest
of the batch (Trainer, Lightning, LitGPT), packed (TRL, llmexp), cut from one stream (nanoGPT).
Those that pack take as many steps, with as many tokens in each. On a GPU nanoGPT, and
LitGPT on full rows, are compiled, as by default they are; TRL's activation checkpointing is off.

    real tokens/s   tokens that are predicted, those of an example the same for all, over the
                    seconds of the training steps but the first two; no evaluation, no saving
    the limit       the matrix products of a step and nothing else, measured in every round; the
                    fastest counts, as other work on the machine can only make them slower
    peak memory     of the process; on a GPU torch.cuda.max_memory_allocated
    first step, end seconds from the command until the first step is done, and until the model is
                    saved. All read tokens made before. llmexp also saves what a resume
                    needs, at the end; nobody validates before the first step
    loss            of the last training steps on full rows; else on the validation examples
    apart           from the loss of the tutorial loop, at most: over all steps on full rows

Exit code 1 where one learned something else at dropout 0 on full rows, or llmexp failed.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import peer_environment
from peer_contest import Result, complaint, run
from peer_environment import Environment
from peer_request import asked
from peer_table import BAND, TOLERANCE, Contest, page
from peer_work import MODELS, ROOT, WORKS, Task, Work

SMALLEST = {"length": 32, "batch": 2, "steps": 2}
WITHOUT_DROPOUT = "litgpt"


def main() -> int:
    """Run the contests that are asked for, print their tables; return the exit code."""
    given = asked(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no run and no folder behind
    environment = peer_environment.here() if given.here else peer_environment.own()
    with tempfile.TemporaryDirectory(prefix="llmexp-peers-", dir=given.folder) as name:
        folder = Path(name)
        works = [work_of(key, given) for key in given.work]
        facts = lay_out(folder, works, given)
        given.every = given.every or (5 if facts["gpu"] else 1)
        tell("\n".join(heading(environment, given, facts["gpu"])), given.output)
        good = True
        for work in works:
            for precision in given.precision:
                for dropout in given.dropout:
                    missing = absent(given.peers, environment, dropout)
                    contest = Contest(
                        work,
                        precision,
                        dropout,
                        peers=[peer for peer in given.peers if peer not in missing],
                        results=[],
                        limits=[],
                        missing=missing,
                        is_gpu=bool(facts["gpu"]),
                        model=given.model,
                    )
                    compete(contest, folder, facts[work.key], environment, given)
                    tell("\n".join(page(contest)), given.output)
                    good &= is_good(contest)
    return 0 if good else 1


def work_of(key: str, given: argparse.Namespace) -> Work:
    """Return a work, at the size that is asked for."""
    work = replace(WORKS[key], **SMALLEST) if given.smallest else WORKS[key]
    return replace(work, steps=given.steps) if given.steps else work


def lay_out(folder: Path, works: list[Work], given: argparse.Namespace) -> dict[str, Any]:
    """Write weights, tokenizer and examples; return what is to be known of each work,
    and the name of the GPU."""
    text = given.text or folder / "sample.txt"
    if given.text is None:
        parts = sorted((ROOT / "llmexp" / "data" / "sample").glob("part_*.txt"))
        text.write_text("\n".join(part.read_text() for part in parts))
    request = {
        "folder": str(folder),
        "model": given.model,
        "text": str(text),
        "tokenizer": given.tokenizer and str(given.tokenizer),
        "works": [asdict(work) for work in works],
    }
    facts: dict[str, Any] = ask("peer_work.py", folder, request, sys.executable)
    return facts


def ask(script: str, folder: Path, request: dict[str, Any], python: str) -> Any:
    """Run one of the scripts beside this one on a request; return what it answers."""
    path, log = folder / "request.json", folder / "log.txt"
    path.write_text(json.dumps(request))
    with log.open("w") as words:
        done = subprocess.run(
            [python, str(Path(__file__).with_name(script)), str(path)],
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"{script}: {complaint(log, done.returncode)}")
    return json.loads(done.stdout.splitlines()[-1])


def heading(environment: Environment, given: argparse.Namespace, gpu: str) -> Iterator[str]:
    """Yield what is to be known of the machine, the versions and the rules."""
    from importlib.metadata import version

    yield "# python benchmarks/peers.py\n"
    yield f"{date.today()}, {gpu or processor()}, {os.cpu_count()} CPU cores,"
    yield f"load {os.getloadavg()[0]:.1f} before. Python {platform.python_version()}."
    ours = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    theirs = ", ".join(f"{name} {number}" for name, number in environment.versions.items())
    yield f"llmexp runs on {ours}; the peers on {theirs}.\n"
    yield f"{given.rounds} rounds; a row every {given.every} steps. Model {given.model}."
    limits = ", ".join(f"{value:g} in {name}" for name, value in TOLERANCE.items())
    yield f"Losses may be apart by {limits} at dropout 0, by {BAND:g} with dropout, in nats."


def processor() -> str:
    """Return the name of the CPU."""
    path = Path("/proc/cpuinfo")
    names = path.read_text().splitlines() if path.is_file() else []
    found = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    return found[0] if found else platform.machine()


def absent(peers: list[str], environment: Environment, dropout: float) -> dict[str, str]:
    """Return who cannot take part, and why."""
    reasons = {peer: why for peer, why in environment.missing.items() if peer in peers}
    if dropout and WITHOUT_DROPOUT in peers:
        reasons.setdefault(WITHOUT_DROPOUT, "has no dropout")
    return reasons


def compete(
    contest: Contest,
    folder: Path,
    facts: dict[str, Any],
    environment: Environment,
    given: argparse.Namespace,
) -> None:
    """Let every contestant run once in every round, in alternating order."""
    request = {
        "shape": MODELS[given.model],
        "precision": contest.precision,
        "lengths": facts["lengths"],
        "steps": contest.work.steps,
    }
    for round in range(given.rounds):
        limit = ask("peer_limit.py", folder, request, sys.executable)
        contest.limits.append(limit["tokens"] / limit["seconds"])
        for peer in contest.peers if round % 2 == 0 else reversed(contest.peers):
            output = folder / "run"
            task = Task(
                peer=peer,
                work=contest.work,
                folder=str(folder / contest.work.key),
                output=str(output),
                precision=contest.precision,
                dropout=contest.dropout,
                every=given.every,
            )
            result = run(task, environment, round=round, seed=facts["seed"])
            contest.results.append(result)
            shutil.rmtree(output)
            print(told(contest, result), file=sys.stderr, flush=True)


def told(contest: Contest, result: Result) -> str:
    """Return a line about one run."""
    where = f"({contest.work.key}) {contest.precision} {contest.dropout:g}, round {result.round}"
    if result.failure:
        return f"{where}: {result.peer} failed: {result.failure}"
    return (
        f"{where}: {result.peer} {result.tokens_per_second:,.0f} tokens/s, {result.memory:.2f} GiB,"
        f" first step {result.first_step:.1f} s, end {result.end:.1f} s, loss {result.last:.4f}"
    )


def is_good(contest: Contest) -> bool:
    """Say whether all learned the same, where that can be said, and llmexp ran."""
    ran = all(not result.failure for result in contest.results if result.peer == "llmexp")
    return ran and not (contest.dropout == 0 and contest.strangers())


def tell(text: str, output: Path | None) -> None:
    """Print, and append to the file of the tables."""
    print(text, flush=True)
    if output:
        with output.open("a") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
