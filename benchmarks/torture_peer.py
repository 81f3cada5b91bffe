"""Half of benchmarks/torture.py: the real command and Hugging Face's Trainer, killed alike."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

Row = tuple[object, ...]
PEER_STEPS, PEER_SAVES = 1500, 5
NEWS = 1.0  # seconds after its first new row within which a process is killed


def against_trainer(kills: int) -> tuple[list[Row], str]:
    """Kill both the same way; return the second table, and what it shows in words."""
    from tiny_runs import command

    settings = (
        *(f"train.max_steps={PEER_STEPS}", f"checkpoint.every_steps={PEER_SAVES}"),
        *("train.validate_every=1000", "checkpoint.keep=2", "resume=auto"),
    )
    table: list[Row] = [
        ("", "kills", "resumed by itself", "helped by hand", "rows of loss that differ", "weights")
    ]
    calm, restless = (command(name, *settings) for name in ("one", "other"))
    table.append(
        ("llmexp", *contest(calm, restless, Path("outputs/one"), Path("outputs/other"), kills))
    )
    if find_spec("accelerate") is None:
        return table, "Trainer was left out: it wants `pip install accelerate`."
    one, other = Path("trainer/one"), Path("trainer/other")
    calm, restless = ([sys.executable, __file__, str(path)] for path in (one, other))
    table.append(("Hugging Face Trainer", *contest(calm, restless, one, other, kills)))
    return (
        table,
        f"GPT-2 with 1 layer, 16 wide, dropout 0.1, {PEER_STEPS} steps of 16 examples, a "
        f"checkpoint every {PEER_SAVES} steps, the newest 2 kept. Killed within {NEWS:g} s after "
        "its first new row, then the same command again (Trainer: with its get_last_checkpoint). "
        "Helped by hand: a start that failed, after which the newest checkpoint folder was "
        "deleted.",
    )


def contest(calm: list[str], restless: list[str], one: Path, other: Path, kills: int) -> Row:
    """Run one in peace and kill the other; return what the table says."""
    subprocess.run(calm, env=environment(), check=True, capture_output=True)
    chance, done, helped, starts = random.Random(1), 0, 0, 0
    while True:
        starts += 1
        print(one.name, starts, file=sys.stderr, flush=True)
        code = killed_after_news(restless, other, chance.uniform(0, NEWS) if done < kills else None)
        if code == 0:
            break
        done += code == -signal.SIGKILL
        if code != -signal.SIGKILL:
            helped += 1
            folders = sorted(other.rglob("step-*")) + sorted(
                other.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[-1])
            )
            shutil.rmtree(folders[-1])
    losses, others = losses_of(one), losses_of(other)
    differ = sum(losses.get(step) != others.get(step) for step in losses | others)
    same = sha256(one) == sha256(other)
    return (
        done,
        f"{starts - 1 - helped} of {starts - 1}",
        helped,
        f"{differ} of {len(losses)}",
        "the same" if same else "differ",
    )


def environment() -> dict[str, str]:
    """Return the environment of both."""
    from tiny_runs import environment

    return environment() | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}


def killed_after_news(command: list[str], folder: Path, wait: float | None) -> int:
    """Run a command; kill it `wait` seconds after its metrics grew. None: let it end."""
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = folder / "metrics.jsonl"
    seen = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while wait is not None and process.poll() is None:
        time.sleep(0.01)
        if metrics.exists() and metrics.stat().st_mtime_ns != seen and metrics.stat().st_size:
            time.sleep(wait)
            process.kill()
            break
    return process.wait(timeout=600)


def losses_of(folder: Path) -> dict[int, object]:
    """Return the training loss of every step; a step that was done twice counts as it was last."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {row["train/global_step"]: row["train/loss"] for row in found if "train/loss" in row}


def sha256(folder: Path) -> str:
    """Return the SHA-256 of the final weights."""
    return hashlib.sha256((folder / "final" / "model.safetensors").read_bytes()).hexdigest()


def peer(folder: Path) -> None:
    """Train the same model with Hugging Face's Trainer, from its last checkpoint if it has one."""
    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )
    from transformers.trainer_utils import get_last_checkpoint

    class Losses(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
            if "loss" in (logs or {}):
                with (folder / "metrics.jsonl").open("a") as file:
                    row = {"train/global_step": state.global_step, "train/loss": logs["loss"]}
                    file.write(json.dumps(row) + "\n")

    folder.mkdir(parents=True, exist_ok=True)
    set_seed(42)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 64, "vocab_size": 320}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    ids = torch.randint(320, (65, 32), generator=torch.Generator().manual_seed(0)).tolist()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=PEER_STEPS,
            per_device_train_batch_size=16,
            save_steps=PEER_SAVES,
            save_total_limit=2,
            logging_steps=1,
            learning_rate=3e-3,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=42,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        callbacks=[Losses()],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    model.save_pretrained(folder / "final")


if __name__ == "__main__":
    peer(Path(sys.argv[1]))
