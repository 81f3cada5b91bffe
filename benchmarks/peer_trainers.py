"""Hugging Face's Trainer, and TRL's SFTTrainer on top of it, as contestants."""

from pathlib import Path
from typing import Any

import torch
from peer_loops import hugging_face_model, judge
from peer_meter import Meter
from peer_work import (
    LEARNING_RATE,
    MAX_NORM,
    WEIGHT_DECAY,
    Examples,
    Task,
    multiplier,
)
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Told(TrainerCallback):
    """Hands what a Trainer logs to the meter."""

    def __init__(self, meter: Meter, *, shares: bool) -> None:
        """`shares`: the rows are not the examples, the meter cannot count their tokens."""
        self._meter, self._shares = meter, shares
        # Trainer divides by the labels before they are shifted: by one too many in each row
        length = meter.task.work.length
        self._factor = length / (length - 1) if meter.task.work.is_full else 1.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Start the clock."""
        if self._shares:
            self._meter.share_evenly(state.max_steps)
        self._meter.begin()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        """Note a row of training."""
        if "loss" in (logs or {}):
            self._meter.row(state.global_step, logs["loss"] * self._factor)


def on_our_schedule(kind: type) -> type:
    """Return a Trainer whose learning rate is that of the other contestants."""

    class Scheduled(kind):  # type: ignore[misc, valid-type]
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            optimizer = optimizer or self.optimizer
            rule = lambda step: multiplier(step, num_training_steps)  # noqa: E731
            self.lr_scheduler = LambdaLR(optimizer, rule)
            return self.lr_scheduler

    return Scheduled


def arguments(task: Task, batch: int) -> dict[str, Any]:
    """Return what both are told: one pass over the examples, in their order."""
    return {
        "output_dir": task.output,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": task.work.batch,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_NORM,
        "bf16": task.precision == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "train_sampling_strategy": "sequential",
        "logging_steps": task.every,
        "logging_first_step": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def trainer(task: Task, examples: Examples, meter: Meter) -> None:
    """Train with Trainer, each batch padded to its longest row."""
    model = hugging_face_model(task)
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    run = on_our_schedule(Trainer)(
        model=model,
        args=TrainingArguments(**arguments(task, task.work.batch)),
        train_dataset=rows_of(examples.train),
        eval_dataset=rows_of(examples.validation),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        callbacks=[Told(meter, shares=False)],
    )
    finish(run, task, meter)


def rows_of(found: list[list[int]]) -> list[dict[str, list[int]]]:
    """Return a data set as Trainer wants it."""
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)} for ids in found
    ]


def trl(task: Task, examples: Examples, meter: Meter) -> None:
    """Train with SFTTrainer, packing on; full rows it would only put in another order.

    So many packed rows per step that it takes about as many steps as the others. Activation
    checkpointing, which is on by default, is off: nobody else computes twice.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    work = task.work
    tokens = sum(map(len, examples.train))
    batch = work.batch if work.is_full else max(1, round(tokens / work.length / work.steps))
    run = on_our_schedule(SFTTrainer)(
        model=hugging_face_model(task),
        args=SFTConfig(
            **arguments(task, batch),
            max_length=work.length,
            packing=not work.is_full,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"input_ids": examples.train}),
        eval_dataset=Dataset.from_dict({"input_ids": examples.validation}),
        processing_class=AutoTokenizer.from_pretrained(task.model),
        callbacks=[Told(meter, shares=not work.is_full)],
    )
    finish(run, task, meter)


def finish(run: Any, task: Task, meter: Meter) -> None:
    """Train, evaluate where that counts, save, and be judged."""
    run.train()
    if task.work.evaluates:
        run.evaluate()
    run.save_model(str(Path(task.output) / "model"))
    meter.done()
    judge(run.model, task, meter)
