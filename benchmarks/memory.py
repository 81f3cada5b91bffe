"""The memory plans, held against a real GPU: ten minutes, or two with --jobs 6.

    python benchmarks/memory.py [--jobs N]

For each case, in a process of its own, under the preset's cap: 20 optimizer steps with validation,
a checkpoint and sampling, rows of full length, fresh weights (the numbers do not depend on them).
With --jobs cases run side by side, on a card that has room for them all: each has its own cap.

    error      predicted against torch.cuda.max_memory_allocated of the training steps
    retries    of the allocator under the cap: a plan that fits needs none
    squeezed   the same under 0.9 of the smallest cap it can live with: it must run out of memory,
               and go on at a smaller micro-batch
    plain      the guide's loop at the guide's batch, under the same cap

Exit code 1 where a promise does not hold.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
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


CHILDREN: list[subprocess.Popen[str]] = []
HEADINGS = (
    *("case", "passes x rows", "predicted, GiB", "measured", "error"),
    *("reserved: predicted, GiB", "measured", "cap", "retries", "squeezed: rows"),
)


def main() -> int:
    """Run every case that this card can hold; return the exit code."""
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="cases side by side")
    jobs = parser.parse_args().jobs
    if not torch.cuda.is_available():
        print("benchmarks/memory.py measures a CUDA device, and PyTorch finds none here.")
        print("Without one: python -m llmexp.plan, and pytest tests/memory.")
        return 2
    signal.signal(signal.SIGTERM, stop)
    for line in heading():
        print(line, flush=True)
    free = torch.cuda.mem_get_info()[0] / GIB
    precision = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    with ThreadPoolExecutor(jobs) as pool:
        verdicts = list(pool.map(lambda work: work(), works(precision, free)))
    return 0 if all(verdicts) else 1


def heading() -> Iterator[str]:
    """Yield what is to be known of the card, and the head of the table."""
    import torch
    import transformers

    major, minor = torch.cuda.get_device_capability()
    free, total = torch.cuda.mem_get_info()
    context = child("context", {"used": total - free})["context"]
    yield "# python benchmarks/memory.py\n"
    yield f"{date.today()}, {torch.cuda.get_device_name()}, compute capability {major}.{minor},"
    yield f"{total / GIB:.1f} GiB, {free / GIB:.1f} of them free, torch {torch.__version__}, CUDA"
    yield f"{torch.version.cuda}, transformers {transformers.__version__}.\n"
    yield f"The CUDA context takes {context / GIB:.2f} GiB outside the allocator.\n"
    yield row(HEADINGS)
    yield row("---" for _ in HEADINGS)


def row(cells: Iterable[str]) -> str:
    """Return a line of a table of Markdown."""
    return "| " + " | ".join(cells) + " |"


def works(precision: str, free: float) -> Iterator[Callable[[], bool]]:
    """Yield what there is to run, and say what this card (`free` GiB) or machine lacks."""
    for model, hw, batch_size, allow in CASES:
        name = f"{model} {hw} {allow}".rstrip()
        if lacking := missing(allow, precision):
            print(f"{name}: left out, {lacking}", file=sys.stderr)
            continue
        plan = planned(model, hw, batch_size, allow=allow, precision=precision)
        if plan["budget_gib"] > free:
            print(f"{name}: this card has not that much free", file=sys.stderr)
            continue
        yield partial(judge, name, plan)
    for layers, width, heads, rows, gib in GUIDE:
        if gib <= free:
            shape = {"layers": layers, "width": width, "heads": heads, "rows": rows}
            yield partial(judge_plain, shape, gib)


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
    if not at_cap["rows"]:
        print(row([name, "", "", at_cap["told"], *[""] * 6]), flush=True)
        return False
    assert at_cap["reaches_head"], "the loss took full logits: nothing here could be compared"
    squeezed = child("train", {**plan, "cap": int(0.9 * plan["min_cap"])})
    error = plan["allocated"] / at_cap["allocated"] - 1
    sizes = [f"{plan['allocated'] / GIB:.3f}", f"{at_cap['allocated'] / GIB:.3f}", f"{error:+.2%}"]
    sizes += [f"{size / GIB:.2f}" for size in (plan["reserved"], at_cap["reserved"], plan["cap"])]
    cut = f"{plan['passes']} x {plan['rows']}"
    fewer = f"{at_cap['rows']} -> {squeezed['rows'] or 'the update does not fit'}"
    print(row([name, cut, *sizes, str(at_cap["retries"]), fewer]), flush=True)
    return bool(
        abs(error) <= 0.03
        and at_cap["retries"] == 0
        and at_cap["rows"] == plan["rows"]
        and squeezed["rows"] < plan["rows"]
    )


def judge_plain(shape: Mapping[str, int], gib: float) -> bool:
    """Run the guide's loop under the cap, print its line; tell whether it ran out of memory."""
    fits = child("plain", {**shape, "cap": int(gib * GIB)})["fits"]
    told = "fits" if fits else "out of memory"
    name = f"plain loop, {shape['layers']} layers, {shape['rows']} rows"
    print(row([name, "", "", told, "", "", "", f"{gib:.2f}", "", ""]), flush=True)
    return not fits


def child(task: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """Run a task in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, __file__, task],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    CHILDREN.append(process)
    answer, complaint = process.communicate(json.dumps(case))
    if process.returncode:
        raise SystemExit(f"{task} failed:\n{complaint[-3000:]}")
    return dict(json.loads(answer.splitlines()[-1]))


def stop(*_: object) -> None:
    """End at once, and leave no child on the card."""
    for process in CHILDREN:
        process.kill()
    os._exit(143)


def train(case: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Train 20 steps under the cap, then save and sample; return what was measured, in bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    from llmexp import loss, model, optimizer, precision
    from llmexp.memory import budget, oom
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
    loss.probe_head(trained)
    precision.Precision(name=setting.precision, tf32=False).cast_weights(trained)
    built = stand_in.build_optimizer(trained, setting)
    if setting.optimizer["_target_"] == stand_in.EIGHT_BIT:  # here the library itself
        built = optimizer.build(trained, optimizer.adamw8bit)
    batches = stand_in.Batches(case["rows"], setting, case["passes"])
    try:
        plan = stand_in.fit(trained, batches, built, device=device, steps=case.get("steps", 20))
    except RuntimeError as error:  # of the update, where the engine redoes nothing
        if not oom.is_out_of_memory(error):
            raise
        return {"rows": 0, "told": str(error).partition(". ")[0]}
    stats = torch.cuda.memory_stats() if on_gpu else {}
    save_and_sample(trained, built, device, chosen=precision.Precision(name="fp32", tf32=False))
    return {
        "allocated": stats.get("allocated_bytes.all.peak", 0),
        "reserved": stats.get("reserved_bytes.all.peak", 0),
        "retries": torch.cuda.memory_stats().get("num_alloc_retries", 0) if on_gpu else 0,
        "rows": plan.micro_batch_size,
        "reaches_head": loss.reaches_head(trained),
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


def context(case: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Return the bytes that CUDA takes outside the allocator, once kernels have run.

    `case["used"]` are those of the card that were taken before this process began.
    """
    import torch

    from llmexp.memory import budget

    budget.enforce(budget.Budget("benchmark", 1.0, ""), device)
    square = torch.randn(256, 256, device=device)
    (square @ square).softmax(1).sum().item()
    free, total = torch.cuda.mem_get_info()
    return {"context": total - free - torch.cuda.memory_reserved() - case["used"]}


if __name__ == "__main__":
    tasks = {"train": train, "plain": plain, "context": context}
    if sys.argv[1:2] and sys.argv[1] in tasks:
        import torch

        print(json.dumps(tasks[sys.argv[1]](json.load(sys.stdin), torch.device("cuda"))))
    else:
        sys.exit(main())
