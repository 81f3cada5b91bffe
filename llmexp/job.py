"""One training job: build the parts that the settings name, say what will be done, train."""

import logging
import math
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmexp import checkpoint, config, data, durable, engine, optimizer
from llmexp.console import Console
from llmexp.errors import RequestError
from llmexp.logger import RunInfo
from llmexp.loss import probe_head
from llmexp.model import parameter_count, pick_device, quiet
from llmexp.precision import Precision
from llmexp.run import Run, Trial, write_request
from llmexp.signals import Stop

log = logging.getLogger("llmexp")
Settings = Mapping[str, Any]


def train(settings: Settings, folder: Path, overrides: list[str], trial: Trial) -> float:
    """Train as `settings` say, in the run folder `folder`; return the best validation loss.

    Raises RequestError for what cannot be done, RunError for what went wrong on the way.
    """
    with durable.Lock(folder), Console() as console:
        durable.remove_leftovers(folder)
        start = where_to_start(settings["resume"], folder)
        saved = checkpoint.peek(start).state if start else {}
        refuse_other_settings(saved.get("config", settings), settings, folder)
        parts = build(settings)
        refuse_other_data(saved.get("data", parts.corpus.fingerprint), parts.corpus.fingerprint)
        write_request(folder, settings, overrides)

        plan = derive(settings, parts)
        announce(console, settings, parts, plan, folder)
        stop = Stop()
        run = Run(
            folder=folder,
            settings=settings,
            plan=plan,
            tokenizer=parts.tokenizer,
            precision=parts.precision,
            console=console,
            logger=config.call(settings["logger"]),
            trial=trial,
            stop=stop,
            facts={
                "config": dict(settings),
                "data": parts.corpus.fingerprint,
                "run_id": saved.get("run_id") or uuid.uuid4().hex[:8],
            },
            notes={"Plan": plan_lines(settings, parts, plan), "Data": parts.corpus.report.lines()},
        )
        state = restore(start, parts, run, plan)
        with stop:
            fit(parts, plan, run, state)
    if stop.requested:
        sys.exit(stop.requested)
    return math.nan if state.best is None else state.best


def fit(parts: "Parts", plan: engine.Plan, run: Run, state: engine.State) -> None:
    """Run the engine between the logger's start and its finish, whatever happens."""
    run.logger.start(run_info(run, parts, state))
    outcome = "crashed"
    try:
        engine.fit(
            model=parts.model,
            batches=parts.batches,
            validation=parts.validation,
            optimizer=parts.optimizer,
            schedule=parts.schedule,
            precision=parts.precision,
            plan=plan,
            run=run,
            state=state,
        )
        run.finish(parts.model, state)
        outcome = {"pruned": "pruned", "signal": "stopped"}.get(state.stopped or "", "finished")
    finally:
        run.logger.finish(outcome, run.summary(state))


@dataclass(frozen=True)
class Parts:
    """What the settings name, built."""

    name: str
    device: torch.device
    precision: Precision
    tokenizer: Any
    corpus: data.Corpus
    batches: data.Batches
    validation: data.Batches
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    remarks: list[str]  # what had to be done differently, and why


def build(settings: Settings) -> Parts:
    """Build every part. Cheap checks come first, so that a wrong request is refused within
    seconds."""
    quiet()
    source = config.call(settings["data"])
    blueprint = config.call(settings["model"])
    device = pick_device(settings["hw"]["device"])
    architecture = blueprint.config()
    precision: Precision = config.call(settings["precision"])
    precision.choose(device, width=getattr(architecture, "hidden_size", None))
    refuse_long_rows(settings, architecture)

    tokenizer = blueprint.load_tokenizer(source.texts(), vocab_size=architecture.vocab_size)
    corpus = source.tokenize(
        tokenizer, seed=settings["seed"], batch_size=settings["train"]["batch_size"]
    )
    torch.manual_seed(settings["seed"])
    model = blueprint.build(architecture, tokenizer, device=device)
    if settings["train"]["activation_checkpointing"] is True:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    full_logits_because = probe_head(model)
    packs, unpacked_because = data.can_pack(model)
    remarks = [f"the loss takes full logits: {full_logits_because}"] if full_logits_because else []
    remarks += [] if packs else [f"one example per row, unpacked: {unpacked_because}"]
    batches, validation = (
        data.Batches(
            examples,
            batch_size=settings["train"]["batch_size"],
            max_length=settings["data"]["max_length"],
            seed=settings["seed"],
            shuffle=examples is corpus.train,
            pack=settings["data"]["pack"] and packs,
        )
        for examples in (corpus.train, corpus.validation)
    )
    return Parts(
        name=blueprint.name,
        device=device,
        precision=precision,
        tokenizer=tokenizer,
        corpus=corpus,
        batches=batches,
        validation=validation,
        model=model,
        optimizer=optimizer.build(model, config.call(settings["optimizer"])),
        schedule=config.call(settings["schedule"]),
        remarks=remarks,
    )


def derive(settings: Settings, parts: Parts) -> engine.Plan:
    """Derive the numbers of the run: steps from epochs and batch size, the micro-batch from what
    fits."""
    wanted = settings["train"]
    per_epoch = parts.batches.steps_per_epoch
    micro_batch_size = wanted["micro_batch_size"]
    if micro_batch_size == "auto":
        micro_batch_size = max(1, 4096 // settings["data"]["max_length"])
    return engine.Plan(
        steps=wanted["max_steps"] or max(1, math.ceil(wanted["epochs"] * per_epoch)),
        steps_per_epoch=per_epoch,
        micro_batch_size=micro_batch_size,
        max_grad_norm=wanted["max_grad_norm"],
        validate_every=wanted["validate_every"],
        patience=wanted["patience"] or math.inf,
        log_every=wanted["log_every"],
        on_nonfinite=wanted["on_nonfinite"],
        on_spike=wanted["on_spike"],
        seed=settings["seed"],
    )


def where_to_start(resume: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to continue from, or None to begin at step 0.

    Raises RequestError where the folder holds a run and nobody asked to continue it, and where none
    of its checkpoints can be used: a run is never silently begun again.
    """
    checkpoints = folder / "checkpoints"
    durable.remove_leftovers(checkpoints)
    if resume is None:
        if (folder / "metrics.jsonl").exists():
            raise RequestError(
                f"{folder} holds a run already: add resume=auto to continue it, or choose another "
                "run.name"
            )
        return None
    if resume != "auto" and Path(resume).parent.name == "checkpoints":
        return checkpoint.find(Path(resume))[0]
    if not any(checkpoints.glob("step-*")):
        if (folder / "metrics.jsonl").exists():
            log.info(f"{folder} has no checkpoint yet: it begins again at step 0")
        return None
    path, notes = checkpoint.find(folder)
    for note in notes:
        log.warning(note)
    return path


def refuse_other_settings(saved: Settings, settings: Settings, folder: Path) -> None:
    """Tell which settings changed since the run began; refuse those that would make it another
    run."""
    allowed, refused = checkpoint.config_differences(saved, settings)
    if refused:
        raise RequestError(
            f"{folder} was begun with other settings, and a run cannot change them half-way:\n"
            + "\n".join(f"  {line}" for line in refused)
            + "\nGive them their old values, or start a new run."
        )
    for line in allowed:
        log.info(f"changed since the run began: {line}")


def refuse_other_data(saved: str, fingerprint: str) -> None:
    """Refuse to continue a run on other data than it began with."""
    if saved != fingerprint:
        raise RequestError(
            "the data changed since this run began (other text, split or tokenizer), so the rest "
            "of it would not be "
            "the same run: bring the old files back, or start a new run"
        )


def refuse_long_rows(settings: Settings, architecture: Any) -> None:
    """Refuse rows longer than the model has positions for."""
    positions = getattr(architecture, "max_position_embeddings", None) or math.inf
    length = settings["data"]["max_length"]
    if length > positions:
        raise RequestError(
            f"data.max_length={length} is more than the {positions} positions of "
            f"{settings['model']['name']}: "
            f"use data.max_length={positions}"
        )


def restore(start: Path | None, parts: Parts, run: Run, plan: engine.Plan) -> engine.State:
    """Load the checkpoint `start`, if there is one, and cut the run's files back to it."""
    state = engine.State()
    if start is not None:
        saved = checkpoint.peek(start)
        remembered = checkpoint.load(
            start, model=parts.model, optimizer=parts.optimizer, scaler=parts.precision.scaler
        )
        state = engine.State(**remembered["state"])
        plan.micro_batch_size = min(plan.micro_batch_size, remembered["micro_batch_size"])
        if Path(run.settings["resume"]).parent.name == "checkpoints":  # the one that was asked for
            checkpoint.remove_after(start.parent, state.step)
        log.info(f"continuing {run.folder} at step {state.step:,}")
        before = {**saved.environment, "precision": remembered["precision"]}
        now = {**checkpoint.environment(parts.model), "precision": parts.precision.name}
        for line in checkpoint.environment_differences(before, now):
            log.warning(line)
    run.resume_from(state, begun=start is not None)
    return state


def run_info(run: Run, parts: Parts, state: engine.State) -> RunInfo:
    """Return what a logger shows of a run."""
    return RunInfo(
        id=run.facts["run_id"],
        name=run.folder.name,
        dir=run.folder,
        metrics_file=run.folder / "metrics.jsonl",
        group=run.settings.get("sweep"),
        tags=(parts.name, run.settings["data"]["name"], run.settings["hw"]["name"]),
        config={
            **run.settings,
            "plan": {"parameters": parameter_count(parts.model), "steps": run.plan.steps},
            "data_report": parts.corpus.report.as_dict(),
        },
        resumed_from_step=state.step or None,
    )


def announce(
    console: Console, settings: Settings, parts: Parts, plan: engine.Plan, folder: Path
) -> None:
    """Say what will be done, with its arithmetic."""
    console.plan(plan_lines(settings, parts, plan))
    console.report(parts.corpus.report.lines())
    for remark in parts.remarks:
        console.message(f"  {remark}")
    console.message(f"  folder  {folder}")


def plan_lines(settings: Settings, parts: Parts, plan: engine.Plan) -> list[str]:
    """Return the plan of a run in words: model, device, precision, batch, steps."""
    size = settings["train"]["batch_size"]
    rows = max(batch.row_count for batch in [parts.batches[0]])
    passes = math.ceil(rows / plan.micro_batch_size)
    weights = settings["model"]["weights"] or "fresh weights"
    return [
        f"plan    {parts.name}: {parameter_count(parts.model):,} parameters, {weights}",
        f"  on      {device_name(parts.device)}, {parts.precision.name} ({parts.precision.reason})",
        f"  step    {size} examples = {passes} x up to {min(rows, plan.micro_batch_size)} rows of "
        "at most "
        f"{settings['data']['max_length']} tokens (micro-batch x accumulation follow from what "
        "fits)",
        f"  run     {plan.steps:,} steps = {plan.steps / plan.steps_per_epoch:.2f} epochs of "
        f"{plan.steps_per_epoch:,}"
        f" steps, a validation every {settings['train']['validate_every']:g} epochs",
    ]


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"
