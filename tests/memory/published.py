"""Plain loops as others wrote them, traced: the rows of the common guide, and those of the HF docs.

Run as a script (the fake GPU cannot be unregistered): reads the name of a case, prints its numbers.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from llmexp import packed
from llmexp.memory import allocator
from llmexp.memory.trace.device import fake_gpu
from llmexp.memory.trace.recorder import Recorder, Recording
from llmexp.memory.trace.step import WORKSPACE, materialize


def guide_row(layers: int, width: int, heads: int, *, rows: int) -> Recording:
    """The guide's loop: fp16 autocast, AdamW as it comes, full logits, rows of 512 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=layers, n_embd=width, n_head=heads, attn_implementation="sdpa")
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    with fake_gpu("flash") as device, packed.told(None):
        recorder = Recorder(device)
        with recorder:
            materialize(model, device)
            optimizer = torch.optim.AdamW(model.parameters())
            for _ in range(2):
                ids = torch.zeros(rows, 512, dtype=torch.int64, device=device)
                with torch.autocast(device.type, dtype=torch.float16):
                    output = model(input_ids=ids, labels=ids)
                output.loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    return recorder.recording


class _OldSoftmax(torch.autograd.Function):
    """Before PyTorch 1.11 the derivative of softmax kept its input beside its output."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, dim: int) -> Tensor:
        output = torch.softmax(scores, dim)
        ctx.save_for_backward(scores, output)
        ctx.dim = dim
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        scores, output = ctx.saved_tensors
        dtype = scores.dtype
        return torch.ops.aten._softmax_backward_data(gradient, output, ctx.dim, dtype), None


@contextlib.contextmanager
def old_softmax() -> Iterator[None]:
    functional = torch.nn.functional
    original = functional.softmax
    # a float32 mask had been added to the scores, always
    functional.softmax = lambda x, dim, **_: _OldSoftmax.apply(x.float(), dim)  # type: ignore
    try:
        yield
    finally:
        functional.softmax = original


def docs_row(*, rows: int, passes: int, fp16: bool, checkpointing: bool, eight_bit: bool) -> float:
    """Hugging Face docs, perf_train_gpu_one, 2022: bert-large classifies rows of 512 tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()
    with fake_gpu("efficient") as device, old_softmax():
        recorder = Recorder(device)
        with recorder:
            materialize(model, device)
            step = _eight_bit(model) if eight_bit else _adamw(model)
            for _ in range(2):
                for _ in range(passes):
                    ids = torch.zeros(rows, 512, dtype=torch.int64, device=device)
                    labels = torch.zeros(rows, dtype=torch.int64, device=device)
                    with torch.autocast(device.type, dtype=torch.float16, enabled=fp16):
                        output = model(input_ids=ids, labels=labels)
                        loss = output.loss / passes
                    del output
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                step()
                model.zero_grad(set_to_none=False)
    return allocator.replay(recorder.recording.events).peak_reserved / 2**20


def _adamw(model: torch.nn.Module) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    return optimizer.step


def _eight_bit(model: torch.nn.Module) -> Callable[[], object]:
    """bitsandbytes' states by shape: two bytes per parameter and one float per 2,048 of them."""
    states: list[Tensor] = []

    def step() -> None:
        if states:
            return
        for parameter in model.parameters():
            count = parameter.numel()
            kind = torch.uint8 if count >= 4096 else torch.float32
            for _ in range(2):
                states.append(torch.zeros_like(parameter, dtype=kind))
                states.append(torch.zeros(max(1, count // 2048), device=parameter.device))

    return step


GUIDE = {
    "6 GB gpt2 2": (12, 768, 12, 2),
    "8 GB gpt2 4": (12, 768, 12, 4),
    "12 GB gpt2-medium 8": (24, 1024, 16, 8),
    "24 GB gpt2-large 16": (36, 1280, 20, 16),
}
DOCS = {
    "fp32 4": (4, 1, False, False, False),
    "accumulation": (1, 4, False, False, False),
    "accumulation, checkpointing": (1, 4, False, True, False),
    "fp16 4": (4, 1, True, False, False),
    "fp16, accumulation, checkpointing": (1, 4, True, True, False),
    "8-bit 4": (4, 1, False, False, True),
    "8-bit, fp16, accumulation, checkpointing": (1, 4, True, True, True),
}


def numbers(name: str) -> dict[str, float]:
    """Return the numbers of one case."""
    if name in DOCS:
        rows, passes, fp16, checkpointing, eight_bit = DOCS[name]
        mib = docs_row(
            rows=rows, passes=passes, fp16=fp16, checkpointing=checkpointing, eight_bit=eight_bit
        )
        return {"reserved_mib": mib}
    layers, width, heads, count = GUIDE[name]
    recording = guide_row(layers, width, heads, rows=count)
    held = [(-1 - i, WORKSPACE) for i in range(2)]
    events = [*held, *recording.events]
    return {
        "live_gib": recording.peak() / 2**30,
        "reserved_gib": allocator.replay(events).peak_reserved / 2**30,
        "min_cap_gib": allocator.min_cap(events) / 2**30,
    }


if __name__ == "__main__":
    print(json.dumps({name: numbers(name) for name in sys.argv[1:]}))
