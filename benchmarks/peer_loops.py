"""Loops that people write by hand: the one of the tutorials, and nanoGPT's."""

from pathlib import Path
from typing import Any

import torch
from peer_meter import Meter, autocast, device, padded, shifted
from peer_work import (
    LEARNING_RATE,
    MAX_NORM,
    WEIGHT_DECAY,
    Examples,
    Task,
    multiplier,
)
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader


def hugging_face_model(task: Task) -> Any:
    """Return the model of the work as transformers makes it, ready to train."""
    from transformers import GPT2LMHeadModel

    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), task.dropout)
    return GPT2LMHeadModel.from_pretrained(task.model, **dropout).to(device()).train()


def tutorial(task: Task, examples: Examples, meter: Meter) -> None:
    """Train as the common tutorial does: every row padded to the full length.

    Padding is no label here, which not every tutorial remembers.
    """
    torch.manual_seed(0)
    work = task.work
    model = hugging_face_model(task)
    loader = DataLoader(
        examples.train,  # type: ignore[arg-type]
        batch_size=work.batch,
        collate_fn=lambda found: padded(found, work.length),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = LambdaLR(optimizer, lambda step: multiplier(step, work.steps))
    scaler = torch.amp.GradScaler(device().type, enabled=task.precision == "fp16")
    meter.begin()
    for batch in loader:
        optimizer.zero_grad()
        with autocast(task):
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), MAX_NORM)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        meter.step(loss)
    model.eval()
    if work.evaluates:
        evaluate(model, task, examples)
    model.save_pretrained(Path(task.output) / "model")
    meter.done()
    judge(model, task, meter)


@torch.no_grad()
def evaluate(model: Any, task: Task, examples: Examples) -> float:
    """Return the mean loss of the batches of the validation set, padded to the full length."""
    losses = []
    for first in range(0, len(examples.validation), task.work.batch):
        batch = padded(examples.validation[first : first + task.work.batch], task.work.length)
        with autocast(task):
            losses.append(model(**batch).loss.item())
    return sum(losses) / len(losses)


def judge(model: Any, task: Task, meter: Meter) -> None:
    """Judge a model of transformers, unless its training losses say enough."""
    if not task.work.is_full:
        model.eval()
        meter.judge(lambda ids: model(input_ids=ids).logits)


def nanogpt(task: Task, examples: Examples, meter: Meter) -> None:
    """Train as nanoGPT does, https://github.com/karpathy/nanoGPT: its loop in our own words.

    Rows are cut from one stream of tokens, so none is padded; compiled on a GPU, as is its default.
    """
    from peer_nanogpt import GPT

    torch.manual_seed(0)
    model = GPT.from_folder(task.model, task.dropout).to(device()).train()
    batches = stream(task, examples, meter)
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    is_gpu = device().type == "cuda"
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=is_gpu)
    scaler = torch.amp.GradScaler(device().type, enabled=task.precision == "fp16")
    forward = torch.compile(model) if is_gpu else model
    meter.begin()
    for step, (inputs, targets) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * multiplier(step, len(batches))
        with autocast(task):
            loss = loss_of(forward(inputs), targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), MAX_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        meter.step(loss)
    model.eval()
    if task.work.evaluates:
        nanogpt_evaluate(model, task, examples)
    model.save(Path(task.output) / "model.safetensors")
    meter.done()
    if not task.work.is_full:
        meter.judge(model)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over the targets."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def stream(task: Task, examples: Examples, meter: Meter) -> list[tuple[Tensor, Tensor]]:
    """Return the inputs and targets of each step: the full rows, or what a stream is cut into.

    The stream is cut so that it makes about as many steps as the others take.
    """
    work = task.work
    if work.is_full:
        firsts = range(0, len(examples.train), work.batch)
        found = [padded(examples.train[first : first + work.batch]) for first in firsts]
        return [(part["input_ids"], shifted(part["labels"])) for part in found]
    tokens = torch.tensor([token for ids in examples.train for token in ids])
    count = (len(tokens) - 1) // work.length
    batch = max(1, round(count / work.steps))
    count -= count % batch  # all steps alike: another shape would be compiled anew
    used = count * work.length
    inputs = tokens[:used].view(count, -1).to(device())
    targets = tokens[1 : used + 1].view(count, -1).to(device())
    batches = list(zip(inputs.split(batch), targets.split(batch), strict=True))
    meter.share_evenly(len(batches), used / len(tokens))
    return batches


@torch.no_grad()
def nanogpt_evaluate(model: Any, task: Task, examples: Examples) -> float:
    """Return the mean loss over the stream of the validation examples."""
    tokens = torch.tensor([token for ids in examples.validation for token in ids])
    losses = []
    for first in range(0, len(tokens) - 1, task.work.length):
        part = tokens[first : first + task.work.length + 1].to(device())
        with autocast(task):
            losses.append(loss_of(model(part[None, :-1]), part[None, 1:]).item())
    return sum(losses) / len(losses)
