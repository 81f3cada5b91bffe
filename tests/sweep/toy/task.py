"""A training run made of arithmetic: the job side of a sweep, for tests to kill.

It keeps one line per validation in evaluated.jsonl, which is also its checkpoint: with resume=auto
it goes on behind the last line, so a validation that is counted twice would be seen.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from llmexp.errors import RequestError
from llmexp.sweep.plugin import register
from llmexp.sweep.trial import NullTrial, run_trial


def loss_at(lr: float, batch_size: int, share: float, seed: int) -> float:
    """A valley in log(lr) whose floor moves with the batch size, as for Adam: lr ~ sqrt(batch)."""
    distance = math.log10(lr / (1e-4 * math.sqrt(batch_size / 8)))
    noise = 1e-3 * math.sin(1e3 * seed + lr * 1e7)
    return 3.0 + 0.2 * distance**2 + 2.0 * math.exp(-4 * share) + noise


def train(cfg: DictConfig, trial: NullTrial) -> float | None:
    if os.environ.get("RANK", "0") != "0":
        return 0.0  # another process of the same trial
    folder = Path(HydraConfig.get().runtime.output_dir)
    record = folder / "evaluated.jsonl"
    if record.exists() and cfg.resume != "auto":
        raise RuntimeError(f"{folder} holds a run already")
    lines = record.read_text().splitlines() if record.exists() else []
    losses = [json.loads(line) for line in lines]
    misbehave(cfg, trial)
    for index in range(len(losses), cfg.train.validations):
        time.sleep(cfg.pause)
        share = (index + 1) / cfg.train.validations
        loss = loss_at(cfg.optimizer.lr, cfg.train.batch_size, share, cfg.seed)
        loss = math.nan if cfg.optimizer.lr > cfg.nan_above and index > 1 else loss
        with record.open("a") as file:
            file.write(f"{json.dumps(loss)}\n")
        losses.append(loss)
        if trial.report(index, loss):
            break
    trial.set("perf/tokens_per_second", 1000.0)
    return None if cfg.fail == "mute" else min(losses)


def misbehave(cfg: DictConfig, trial: NullTrial) -> None:
    with Path(cfg.starts).open("a") as file:
        file.write(f"{trial.number} {os.getpid()}\n")
    odd = (trial.number or 0) % 2 == 1
    if cfg.train.batch_size > cfg.plan:
        raise RequestError(f"toy does not fit {cfg.plan:.2f} GiB: micro-batch 1 takes more")
    if cfg.train.batch_size > cfg.memory:
        raise MemoryError(f"batch {cfg.train.batch_size} does not fit")
    if cfg.fail == "all" or (cfg.fail == "odd" and odd):
        raise RuntimeError("this task always fails")
    if cfg.fail == "exit" and odd:
        sys.exit(3)
    if cfg.fail == "kill" and odd and cfg.resume != "auto":
        os.kill(os.getpid(), 9)
    if cfg.fail == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if cfg.fail == "hang" and odd:
        time.sleep(600)


@hydra.main(config_path="conf", config_name="toy", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    return run_trial(lambda trial: train(cfg, trial))


if __name__ == "__main__":
    register()
    main()
