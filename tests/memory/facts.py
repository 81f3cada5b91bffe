"""Facts about the fake GPU and the traced step, collected in one process and printed as JSON."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional

from llmexp.memory import allocator
from llmexp.memory.setting import Setting, gpt2_config, make
from llmexp.memory.trace import attention, autocast, stand_in, step
from llmexp.memory.trace.device import fake_gpu
from llmexp.memory.trace.recorder import Recorder

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 128, "vocab_size": 512}
ADAMW = {"_target_": "torch.optim.AdamW", "fused": True, "weight_decay": 0.01, "lr": 1e-4}


def setting(precision: str = "bf16", checkpointing: bool = False, **changes: Any) -> Setting:
    settings = {"optimizer": ADAMW, "data": {"pack": False, "max_length": 64, **changes}}
    config = gpt2_config(TINY, 0.1)
    return make(settings, config, precision=precision, checkpointing=checkpointing)


def dtypes() -> dict[str, str]:
    """Return what autocast makes of operators on the fake GPU."""
    found = {}
    with fake_gpu() as device, torch.autocast(device.type, dtype=torch.bfloat16):
        x = torch.ones(4, 4, device=device)
        layer = nn.Linear(4, 4, device=device)
        half = layer(x)
        found["linear"] = half.dtype
        found["gelu of half"] = functional.gelu(half).dtype
        found["pow of half"] = half.pow(3.0).dtype
        found["softmax of half"] = half.softmax(-1).dtype
        found["sum of half"] = half.sum().dtype
        found["layer norm of half"] = functional.layer_norm(half, [4]).dtype
        found["half + float"] = (half + x).dtype
        found["embedding"] = functional.embedding(torch.zeros(2, device=device).long(), x).dtype
    return {name: str(dtype) for name, dtype in found.items()}


def casts() -> list[int]:
    """Return how many cast weights are held: in autocast, after a second use, after its end."""
    with fake_gpu() as device:
        layer, counts = nn.Linear(4, 4, device=device), []
        x = torch.ones(4, 4, device=device)
        with torch.autocast(device.type, dtype=torch.float16):
            layer(x)
            counts.append(len(autocast.cached_casts()))
            layer(x)
            counts.append(len(autocast.cached_casts()))
        counts.append(len(autocast.cached_casts()))
    return counts


def kernels() -> dict[str, str]:
    """Return the attention kernel that each kind of call takes."""
    seen = {}
    with fake_gpu("flash") as device:
        for name, dtype, masked in [
            ("half", torch.bfloat16, False),
            ("half, masked", torch.bfloat16, True),
            ("float", torch.float32, False),
        ]:
            q = torch.ones(1, 2, 16, 8, device=device, dtype=dtype, requires_grad=True)
            mask = torch.ones(1, 1, 16, 16, device=device, dtype=torch.bool) if masked else None
            output = functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
            node = output.grad_fn
            while node is not None and "Attention" not in type(node).__name__:
                node = node.next_functions[0][0]
            seen[name] = type(node).__name__
    return seen


def reads() -> dict[str, Any]:
    """Return what values that nobody has are taken for."""
    with fake_gpu() as device:
        x = torch.ones(4, 6, device=device)
        return {
            "rows under a mask": list(x[torch.zeros(4, device=device) == 0].shape),
            "masked_select": list(x.masked_select(x > 0).shape),
            "finite": bool(torch.isfinite(x.sum())),
            "item": x.sum().item(),
            "tolist": torch.stack([x.sum(), x.mean()]).tolist(),
        }


def both_trackers() -> dict[str, float]:
    """Return the peak in bytes of a GPT-2 step, by PyTorch's MemTracker and by ours."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(attn_implementation="sdpa"))
    with fake_gpu() as device:
        theirs, ours = MemTracker(), Recorder(device)
        with ours:
            step.materialize(model, device)
            optimizer = torch.optim.AdamW(model.parameters(), fused=True)
            theirs.track_external(model, optimizer)
            with theirs:
                for _ in range(2):
                    ids = torch.zeros(2, 512, dtype=torch.int64, device=device)
                    with torch.autocast(device.type, dtype=torch.float16):
                        loss = model(input_ids=ids, labels=ids).loss
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    theirs.reset_mod_stats()
    peak = theirs.get_tracker_snapshot("peak")[device]["Total"]
    return {"MemTracker": peak, "ours": ours.recording.peak()}


def steps() -> dict[str, dict[str, Any]]:
    """Return the numbers of tiny steps."""
    found = {}
    for name, wanted, rows, passes in [
        ("plain", setting(), 4, 2),
        ("again", setting(), 4, 2),
        ("one pass", setting(), 4, 1),
        ("more rows", setting(), 8, 2),
        ("checkpointing", setting(checkpointing=True), 4, 2),
        ("fp32", setting("fp32"), 4, 2),
        ("fp16", setting("fp16"), 4, 2),
        ("packed", setting(pack=True), 4, 2),
    ]:
        recording = step.trace(wanted, stand_in.Batches(rows, wanted, passes))
        last = dict[int, int]()
        for storage, size in recording.events:
            last[storage] = size
        found[name] = {
            "peak": recording.peak(),
            "parts": recording.at_peak(),
            "allocated": allocator.replay(recording.events).peak_allocated,
            "released twice": sum(not size for _, size in recording.events)
            - len(last)
            + sum(bool(size) for size in last.values()),
        }
    return found


def flash_backward() -> list[int]:
    """Return what the backward of flash attention takes for itself, for [2, 3, 130, 40] queries."""
    query = torch.empty(2, 3, 130, 40, device="meta")
    func = torch.ops.aten._scaled_dot_product_flash_attention_backward.default
    return attention.kernel_temporaries(func, (None, query))


if __name__ == "__main__":
    collected = (dtypes, casts, kernels, reads, steps, flash_backward, both_trackers)
    print(json.dumps({f.__name__: f() for f in collected}))
