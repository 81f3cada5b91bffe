"""python benchmarks/memory.py: the memory plans, held against a real GPU. About ten minutes.

For each case, in a process of its own, under the preset's cap: 20 optimizer steps with validation,
a checkpoint and sampling, rows of full length, fresh weights (the numbers do not depend on them).

    error      predicted against torch.cuda.max_memory_allocated of the training steps
    retries    of the allocator under the cap: a plan that fits needs none
    squeezed   the same under 0.9 of the smallest cap it can live with: it must run out of memory,
               and go on at a smaller micro-batch
    plain      the guide's loop at the guide's batch, under the same cap
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
GIB = 2**30

CASES = (  # model, preset, examples per step, what may change the numbers
    ("gpt2", "6gb", 16, ""),
    ("gpt2", "8gb", 16, ""),
    ("gpt2-medium", "8gb", 16, ""),
    ("gpt2-medium", "12gb", 8, ""),
    ("gpt2-medium", "12gb", 16, ""),
    ("gpt2-large", "24gb", 16, ""),
    ("gpt2-medium", "6gb", 16, "adamw8bit"),
    ("gpt2-large", "8gb", 16, "adamw8bit,bf16_parameters"),
)
GUIDE = (  # layers, width, heads, rows, GiB: the guide's rows for 12 and 24 GB
    (24, 1024, 16, 8, 10.6),
    (36, 1280, 20, 16, 22.2),
)


def main() -> int:
    """Run every case that this card can hold; return the exit code."""
    import torch

    if not torch.cuda.is_available():
        print("benchmarks/memory.py measures a CUDA device, and PyTorch finds none here.")
        print("Without one: python -m llmexp.plan, and pytest tests/memory.")
        return 2
    free = torch.cuda.mem_get_info()[0] / GIB
    major, minor = torch.cuda.get_device_capability()
    print(f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}")
    print(f"{free:.1f} GiB free, torch {torch.__version__}, CUDA {torch.version.cuda}")
    good = True
    precision = "bf16" if major >= 8 else "fp16"
    for model, hw, batch_size, allow in CASES:
        if lacking := missing(allow, precision):
            print(f"{model} {hw} train.allow=[{allow}]: left out, {lacking}")
            continue
        plan = planned(model, hw, batch_size, allow=allow, precision=precision)
        if plan["budget_gib"] > free:
            print(f"{model} {hw}: this card has not that much free")
            continue
        good &= judge(f"{model} {hw} {plan['passes']} x {plan['rows']} {allow}".rstrip(), plan)
    for layers, width, heads, rows, gib in GUIDE:
        if gib <= free:
            shape = {"layers": layers, "width": width, "heads": heads, "rows": rows}
            fits = child("plain", {**shape, "cap": int(gib * GIB)})["fits"]
            print(f"plain loop, {layers} layers, {rows} rows in {gib} GiB: fits is {fits}")
            good &= not fits
    return 0 if good else 1


def missing(allow: str, precision: str) -> str | None:
    """Say what a case would need that is not here."""
    if "bf16_parameters" in allow and precision != "bf16":
        return "this card has no bf16"
    if "adamw8bit" in allow and importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed: pip install 'llmexp[8bit]'"
    return None


def planned(model: str, hw: str, batch_size: int, *, allow: str, precision: str) -> dict[str, Any]:
    """Return the plan of a case as plain values."""
    from dataclasses import asdict

    from llmexp.memory import planner, setting
    from llmexp.plan import composed

    case = [f"model={model}", f"hw={hw}", f"train.batch_size={batch_size}"]
    plan = planner.plan(composed([*case, f"precision={precision}", f"train.allow=[{allow}]"]))
    settings = plan.settings
    assert plan.prediction is not None and plan.budget is not None
    config = setting.gpt2_config(settings["model"]["architecture"], settings["model"]["dropout"])
    wanted = setting.make(
        settings,
        config,
        precision=plan.prediction.precision,
        checkpointing=plan.activation_checkpointing,
    )
    return {
        "setting": asdict(wanted),
        "rows": plan.micro_batch_size,
        "passes": plan.accumulation,
        "cap": plan.budget.bytes,
        "budget_gib": plan.budget.gib,
        "allocated": plan.prediction.allocated,
        "reserved": plan.prediction.reserved,
        "min_cap": plan.prediction.min_cap,
    }


def judge(name: str, plan: Mapping[str, Any]) -> bool:
    """Run a case at its cap and below, print its line; tell whether the promises held."""
    at_cap = child("train", plan)
    squeezed = child("train", {**plan, "cap": int(0.9 * plan["min_cap"])})
    error = plan["allocated"] / at_cap["allocated"] - 1
    print(
        f"{name}: predicted {plan['allocated'] / GIB:.3f} GiB allocated, measured "
        f"{at_cap['allocated'] / GIB:.3f} ({error:+.2%}); reserved {plan['reserved'] / GIB:.2f}, "
        f"measured {at_cap['reserved'] / GIB:.2f} of {plan['budget_gib']}; "
        f"retries {at_cap['retries']}; "
        f"squeezed: micro-batch {plan['rows']} -> {squeezed['rows']}",
        flush=True,
    )
    return bool(
        abs(error) <= 0.03
        and at_cap["retries"] == 0
        and at_cap["rows"] == plan["rows"]
        and squeezed["rows"] < plan["rows"]
    )


def child(task: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """Run a task in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, task], input=json.dumps(case), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def train(case: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Train 20 steps under the cap, then save and sample; return what was measured, in bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    from llmexp import model, optimizer, precision
    from llmexp.memory import budget
    from llmexp.memory.setting import Setting
    from llmexp.memory.trace import stand_in, step

    on_gpu = device.type == "cuda"
    setting = Setting(**case["setting"])
    if on_gpu:
        budget.enforce(budget.Budget("benchmark", case["cap"] / GIB, ""), device)
    with device:
        trained: Any = AutoModelForCausalLM.from_config(
            step.build_config(setting), attn_implementation="sdpa", dtype=torch.float32
        )
    model.fuse_gelu(trained)
    precision.Precision(name=setting.precision, tf32=False).cast_weights(trained)
    built = stand_in.build_optimizer(trained, setting)
    if setting.optimizer["_target_"] == stand_in.EIGHT_BIT:  # here the library itself
        built = optimizer.build(trained, optimizer.adamw8bit)
    batches = stand_in.Batches(case["rows"], setting, case["passes"])
    plan = stand_in.fit(trained, batches, built, device=device, steps=case.get("steps", 20))
    stats = torch.cuda.memory_stats() if on_gpu else {}
    save_and_sample(trained, built, device, chosen=precision.Precision(name="fp32", tf32=False))
    return {
        "allocated": stats.get("allocated_bytes.all.peak", 0),
        "reserved": stats.get("reserved_bytes.all.peak", 0),
        "retries": torch.cuda.memory_stats().get("num_alloc_retries", 0) if on_gpu else 0,
        "rows": plan.micro_batch_size,
    }


def save_and_sample(trained: Any, optimizer: Any, device: Any, *, chosen: Any) -> None:
    """Write a checkpoint and generate: neither may need more than a step."""
    import torch

    from llmexp import checkpoint

    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(
            Path(folder), 20, model=trained, optimizer=optimizer, scaler=chosen.scaler, state={}
        )
    prompt = torch.ones(3, 8, dtype=torch.int64, device=device)
    trained.eval().generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)


def plain(case: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Run the guide's loop: fp16 autocast, full logits, AdamW as it comes. Does it fit the cap?"""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from llmexp.memory import budget, oom

    budget.enforce(budget.Budget("benchmark", case["cap"] / GIB, ""), device)
    config = GPT2Config(n_layer=case["layers"], n_embd=case["width"], n_head=case["heads"])
    with device:
        model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler(device.type)
    ids = torch.randint(50257, (case["rows"], 512), device=device)
    try:
        for _ in range(3):
            with torch.autocast(device.type, dtype=torch.float16):
                loss = model(input_ids=ids, labels=ids).loss
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    except RuntimeError as error:
        if not oom.is_out_of_memory(error):
            raise
        return {"fits": False}
    return {"fits": True}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    import torch

    work = {"train": train, "plain": plain}[sys.argv[1]]
    print(json.dumps(work(json.load(sys.stdin), torch.device("cuda"))))
