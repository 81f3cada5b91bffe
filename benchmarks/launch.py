"""What launching each pass as one CUDA graph gives: the engine's own step, both ways, by turns.

    python benchmarks/launch.py [--steps N] [--rounds R]

GPT-2 of 124 million fresh weights, bf16, dropout 0.1: forward, loss, backward, clipping and AdamW,
and nothing around them. Milliseconds are those of a step, the median of the rounds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SHAPES = ((1, 128), (4, 512), (16, 512))  # rows, tokens


def main() -> int:
    """Measure every shape, print a table; return the exit code."""
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/launch.py measures a CUDA device, and PyTorch finds none here.")
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| rows x tokens | kernel by kernel, ms | CUDA graphs, ms | ratio |")
    print("| --- | --- | --- | --- |")
    for rows, length in SHAPES:
        plain, graphs = compared(rows, length, steps=given.steps, rounds=given.rounds)
        cells = (f"{rows} x {length}", f"{plain:.2f}", f"{graphs:.2f}", f"{plain / graphs:.2f}x")
        print("| " + " | ".join(cells) + " |", flush=True)
    return 0


def compared(rows: int, length: int, *, steps: int, rounds: int) -> tuple[float, float]:
    """Return the milliseconds of a step, kernel by kernel and by graphs."""
    from llmexp import engine
    from llmexp.gpu.graphs import Graphs

    ways = [stepping(rows, length, engine.accumulate), stepping(rows, length, Graphs(length))]
    found: list[list[float]] = [[], []]
    for _ in range(rounds):
        for way, times in zip(ways, found, strict=True):
            times.append(timed(way, steps))
    return median(found[0]), median(found[1])


def timed(step: Callable[[], None], steps: int) -> float:
    """Return the milliseconds of a step, after a few that do not count."""
    import torch

    for _ in range(5):
        step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps * 1e3


def stepping(rows: int, length: int, accumulate: Any) -> Callable[[], None]:
    """Return one optimizer step of a fresh GPT-2."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from llmexp import loss, model, optimizer
    from llmexp.memory.setting import gpt2_config, make
    from llmexp.memory.trace.stand_in import Batches
    from llmexp.precision import Precision

    device = torch.device("cuda")
    trained = GPT2LMHeadModel(GPT2Config()).to(device).train()
    model.fuse_gelu(trained)
    loss.probe_head(trained)
    adam = optimizer.build(trained, partial(torch.optim.AdamW, lr=1e-4, fused=True))
    precision = Precision(name="bf16", tf32=False).choose(device)
    settings = {
        "optimizer": {"_target_": "torch.optim.AdamW"},
        "data": {"pack": False, "max_length": length},
    }
    setting = make(settings, gpt2_config({}, 0.1), precision="bf16", checkpointing=False)
    batch: Any = Batches(rows, setting, passes=1)

    def step() -> None:
        found = accumulate(trained, batch, precision, rows)
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step_if_finite(adam, precision.scaler, found + norm)
        adam.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    sys.exit(main())
