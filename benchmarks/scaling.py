"""python benchmarks/scaling.py: what a step costs as the work grows. Half an hour of a CPU.

    tokens   gpt2-nano's step at more and more tokens per step
    sizes    the step of larger and larger models, up to gpt2
    steps    10,000 steps of gpt2-nano by the real command, a row of metrics at each: speed,
             resident memory and open files, looked at from outside, must stay what they are

On a CPU times are CPU seconds of one thread, which other work disturbs least; on a GPU they are by
the clock. Writes benchmarks/results/scaling.md and scaling.png. Linux only (/proc).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scaling_page import Cost, Found, Moment, draw, page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LENGTH = 128  # tokens of a row
ROWS = 8  # of a forward pass, at most
STEPS = 6  # measured of each setting in a round, after one that is not
TOKENS = (128, 256, 512, 1024, 2048, 4096)  # per step
SHAPES = {"6 x 256": (6, 4, 256), "8 x 384": (8, 6, 384), "8 x 512": (8, 8, 512)}
SIZES = ("gpt2-nano", *SHAPES, "distilgpt2", "gpt2")  # shapes: layers, heads, width
LONG = (
    *("python", "-m", "llmexp.train", "model=gpt2-nano", "data=sample", "logger=none"),
    *("data.unit=block", "data.max_length=64", "train.batch_size=1", "train.log_every=1"),
)


def main() -> None:
    """Measure, print the page and write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="per step")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--steps", type=int, default=10_000, help="of the long run")
    parser.add_argument("--rounds", type=int, default=2, help="of the two others")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(json.loads(given.measure))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        by_tokens = {f"{n:,}": line("gpt2-nano", n) for n in given.tokens}
        by_size = {name: line(name, 4 * LENGTH) for name in given.sizes}
        every = in_turns([*by_tokens.values(), *by_size.values()], given.rounds, folder)
        tokens, sizes = (
            {name: every[tuple(words)] for name, words in lines.items()}
            for lines in (by_tokens, by_size)
        )
        found = Found(tokens, sizes, long_run(given.steps, folder))
    report = page(" ".join([*LONG, f"train.max_steps={given.steps}"]), load, found)
    print(report)
    given.out.mkdir(exist_ok=True)
    (given.out / "scaling.md").write_text(report + "\n")
    draw(given.out / "scaling.png", found)


# -- a step, by the engine itself ---------------------------------------------------------------


def line(model: str, tokens: int) -> list[str]:
    """Return the command line of a model and its tokens per step."""
    chosen = [f"model={model}"]
    if model in SHAPES:
        names = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
        sizes = zip(names, (*SHAPES[model], 512, 2048), strict=True)
        shape = ",".join(f"{name}:{size}" for name, size in sizes)
        chosen = ["model=gpt2-nano", f"model.architecture={{{shape}}}"]
    rows = max(1, tokens // LENGTH)
    return [
        *chosen,
        *("model.weights=null", "model.dropout=0", "precision=fp32", "logger=none"),
        *("data.unit=block", f"data.max_length={min(LENGTH, tokens)}"),
        *(f"train.batch_size={rows}", f"train.micro_batch_size={min(rows, ROWS)}"),
        *("train.max_steps=1000000", "train.validate_every=1000000"),
    ]


def in_turns(lines: list[list[str]], rounds: int, folder: Path) -> dict[tuple[str, ...], Cost]:
    """Measure every setting once a round, each time in a process of its own."""
    found: dict[tuple[str, ...], Cost] = {}
    for turn in range(rounds):
        for words in dict.fromkeys(map(tuple, lines)):
            wanted = json.dumps([*words, f"data.cache_dir={folder / 'cache'}"])
            command = [sys.executable, __file__, "--measure", wanted]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            cost = Cost(**json.loads(told.splitlines()[-1]))
            print(f"{turn + 1}: {cost.ms:.1f} ms, {' '.join(words)}", file=sys.stderr, flush=True)
            found.setdefault(words, cost).seconds += cost.seconds if turn else []
    return found


def measure(words: list[str]) -> None:
    """Take a few steps with the engine and print what they cost."""
    from hydra import compose, initialize_config_dir

    from llmexp import engine, job, parts, request
    from llmexp.utilisation import Done, work_of

    with initialize_config_dir(str(request.CONF), version_base="1.3"):
        wanted = request.resolved(compose("train", words))
    built = parts.build(wanted, words)
    on_gpu = built.device.type == "cuda"
    watch = Watch(time.perf_counter if on_gpu else time.process_time, on_gpu)
    engine.fit(
        model=built.model,
        batches=built.batches,
        validation=built.validation,
        optimizer=built.optimizer,
        schedule=built.schedule,
        precision=built.precision,
        plan=job.derive(wanted, built),
        run=watch,  # type: ignore[arg-type]
        state=engine.State(owed=None),
    )
    batch = built.batches[0]
    done = Done(batch.tokens, batch.tokens * wanted["data"]["max_length"], batch.label_tokens)
    cost = Cost(
        seconds=np.diff(watch.times).tolist(),
        tokens=batch.tokens,
        parameters=sum(weight.numel() for weight in built.model.parameters()),
        gflop=work_of(built.model).of(done) / 1e9,
        device=built.device.type,
    )
    print(json.dumps(vars(cost)))


class Watch:
    """Stands in for llmexp.run.Run: looks at the clock after each step and writes nothing."""

    def __init__(self, clock: Callable[[], float], on_gpu: bool) -> None:
        self.times: list[float] = []
        self._clock, self._on_gpu = clock, on_gpu

    def log(self, state: Any, metrics: dict[str, float]) -> None:
        """Write nothing."""

    def checkpoint(self, model: Any, optimizer: Any, state: Any) -> None:
        """Note when a step was done: the first time only sets things up."""
        if self._on_gpu:
            import torch

            torch.cuda.synchronize()
        self.times.append(self._clock())
        if len(self.times) > STEPS:
            state.stopped = "measured"

    def out_of_memory(self, event: Any) -> None:
        """Refuse: a step that is done twice is no measurement."""
        raise RuntimeError(event.line())


# -- 10,000 steps, looked at from outside -------------------------------------------------------


def long_run(steps: int, folder: Path) -> list[Moment]:
    """Train by the command, all steps of one size; look at the process four times a second."""
    command = [sys.executable, *LONG[1:], f"train.max_steps={steps}", "run.name=long"]
    command += [f"data.cache_dir={folder / 'cache'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = folder / "told"
    found: list[Moment] = []
    with told.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            time.sleep(0.25)
            moment = look(process.pid, folder / "outputs" / "long" / "timing.jsonl")
            if moment is not None and (not found or moment.step > found[-1].step):
                found.append(moment)
    if process.returncode != 0:
        sys.exit(told.read_text()[-2000:])
    return found


def look(pid: int, timing: Path) -> Moment | None:
    """Look at a process and its last row; None where there is nothing to be seen."""
    try:
        with timing.open("rb") as file:
            file.seek(max(0, timing.stat().st_size - 4096))
            row = json.loads(file.read().split(b"\n")[-2])
        status = Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2]
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return Moment(
            step=row["train/global_step"],
            trained=row["perf/seconds"],
            cpu=(int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
            resident=int(status.split()[0]) / 1024,
            files=len(os.listdir(f"/proc/{pid}/fd")),
        )
    except (OSError, LookupError, ValueError):  # not begun, just ended, or half a row
        return None


if __name__ == "__main__":
    main()
