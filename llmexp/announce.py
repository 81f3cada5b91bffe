"""What a run says of itself: the plan in words, for a person, the report and the logger."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmexp import checkpoint, engine
from llmexp.console import Console
from llmexp.logger import RunInfo, titles
from llmexp.model import parameter_count
from llmexp.parts import Parts
from llmexp.run import Run
from llmexp.sweep.trial import tags

log = logging.getLogger("llmexp")
Settings = Mapping[str, Any]
MEMORY_TOLERANCE = 0.05  # of the predicted peak


def tell_memory(parts: Parts, run: Run) -> None:
    """Put the predicted and the measured peak of the GPU side by side; warn if they differ much.

    Less is no surprise where no pass was as large as planned: examples were short.
    """
    if parts.device.type != "cuda" or parts.fits.predicted_gib is None:
        return
    predicted = parts.fits.predicted_gib
    measured = torch.cuda.max_memory_allocated(parts.device) / 2**30
    planned = parts.fits.micro_batch_size * run.settings["data"]["max_length"]
    share = run.batches.largest / planned  # of the tokens
    line = f"peak memory: {predicted:.2f} GiB predicted, {measured:.2f} GiB measured"
    if share < 1:
        line += f"; the largest pass had {share:.0%} of the planned {planned:,} tokens"
    if parts.passes is not None:
        line += "; CUDA graphs may take up to twice"
    run.notes["Plan"].append(line)
    log.info(line)
    exact = share == 1 and parts.passes is None  # what a graph holds is not counted at its replay
    least = predicted * (1 - MEMORY_TOLERANCE) if exact else 0.0
    most = predicted * (1 + MEMORY_TOLERANCE) * (1 if parts.passes is None else 2)
    if not least <= measured <= most:
        log.warning(f"the measured peak is more than {MEMORY_TOLERANCE:.0%} off: {line}")


def run_info(run: Run, parts: Parts, state: engine.State) -> RunInfo:
    """Return what a logger shows of a run."""
    return RunInfo(
        id=run.facts["run_id"],
        name=titles.name_of(run.folder),
        dir=run.folder,
        metrics_file=run.folder / "metrics.jsonl",
        job_type="train" if run.trial.number is None else "trial",
        group=run.trial.study or titles.group_of(run.folder),
        tags=(
            parts.name,
            run.settings["data"]["name"],
            run.settings["hw"]["name"],
            *tags(run.trial),
        ),
        config={
            **run.settings,
            "plan": {"parameters": parameter_count(parts.model), "steps": run.plan.steps},
            "trial": {"study": run.trial.study, "number": run.trial.number}
            | dict(run.trial.params),
            "data_report": parts.corpus.report.as_dict(),
            "data_fingerprint": parts.corpus.fingerprint,
            "environment": checkpoint.environment(parts.model),
        },
        resumed_from_step=state.step or None,
    )


def announce(
    console: Console, settings: Settings, parts: Parts, plan: engine.Plan, folder: Path
) -> None:
    """Say what will be done, with its arithmetic."""
    console.plan(plan_lines(settings, parts, plan))
    console.report(parts.corpus.report.lines())
    console.message(f"  folder  {folder}")


def plan_lines(settings: Settings, parts: Parts, plan: engine.Plan) -> list[str]:
    """Return the plan of a run in words: model, device, precision, batch, steps, memory."""
    wanted, length = settings["train"], settings["data"]["max_length"]
    rows = parts.batches[0].row_count
    passes = math.ceil(rows / plan.micro_batch_size)
    weights = settings["model"]["weights"] or "fresh weights"
    count = f"{passes} pass{'es' if passes > 1 else ''} of at most {plan.micro_batch_size} rows"
    return [
        f"plan    {parts.name}: {parameter_count(parts.model):,} parameters, {weights}",
        f"device  {device_name(parts.device)}, {parts.precision.name}: {parts.precision.reason}",
        f"step    {wanted['batch_size']} examples = {rows} row{'s' if rows > 1 else ''} of at most "
        f"{length} tokens = {count} (of the first step)",
        f"run     {plan.steps:,} steps = {plan.steps / plan.steps_per_epoch:.3g} epochs x "
        f"{plan.steps_per_epoch:,} steps, a validation every {wanted['validate_every']:g} epochs",
        *parts.fits.lines,
        *([parts.launch] if parts.launch else []),
        *(f"remark  {remark}" for remark in parts.remarks),
    ]


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' * (threads != 1)})"
