"""One training job: build the parts that the settings name, say what will be done, train."""

import errno
import logging
import math
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmexp import checkpoint, config, data, durable, engine, optimizer, resume
from llmexp.console import Console
from llmexp.errors import RequestError, RunError
from llmexp.logger import Logger, RunInfo
from llmexp.loss import probe_head
from llmexp.memory import budget, planner
from llmexp.model import parameter_count, pick_device, quiet
from llmexp.precision import NARROW, Precision
from llmexp.run import Run, Trial, write_request
from llmexp.schedule import steps_of
from llmexp.signals import Stop, terminable

log = logging.getLogger("llmexp")
Settings = Mapping[str, Any]
MEMORY_TOLERANCE = 0.05  # of the predicted peak


def train(settings: Settings, folder: Path, overrides: list[str], trial: Trial) -> float:
    """Train as `settings` say, in the run folder `folder`; return the best validation loss.

    Raises RequestError for what cannot be done, RunError for what went wrong on the way.
    """
    with (
        durable.Lock(folder),
        removed_if_refused(folder),
        Console() as console,
        terminable(),
        told_if_full(folder),
    ):
        durable.remove_leftovers(folder)
        start = resume.where_to_start(settings["resume"], folder)
        saved = checkpoint.peek(start).state if start else {}
        resume.refuse_other_settings(saved.get("config", settings), settings, folder)
        parts = build(settings, overrides)
        fingerprint = parts.corpus.fingerprint
        resume.refuse_other_data(saved.get("data", fingerprint), fingerprint)
        plan = derive(settings, parts)
        plan.micro_batch_size = resume.micro_batch_size(saved, settings, plan)
        if resume.is_finished(folder, saved, plan):
            return resume.tell_finished(folder, saved["state"])
        write_request(folder, settings, overrides)

        announce(console, settings, parts, plan, folder)
        stop = Stop()
        run = Run(
            folder=folder,
            settings=settings,
            plan=plan,
            tokenizer=parts.tokenizer,
            precision=parts.precision,
            console=console,
            logger=parts.logger,
            trial=trial,
            stop=stop,
            facts={
                "config": dict(settings),
                "data": parts.corpus.fingerprint,
                "run_id": saved.get("run_id") or uuid.uuid4().hex[:8],
            },
            notes={"Plan": plan_lines(settings, parts, plan), "Data": parts.corpus.report.lines()},
        )
        state = resume.restore(start, parts, run)
        with stop:
            fit(parts, plan, run, state)
    if stop.requested:
        sys.exit(stop.requested)
    return math.nan if state.best is None else state.best


@contextmanager
def removed_if_refused(folder: Path) -> Iterator[None]:
    """Take a new run folder away again if the request turns out to be wrong before anything is in
    it."""
    try:
        yield
    except RequestError:
        if {path.name for path in folder.iterdir()} <= {".lock"}:
            durable.discard(folder)
        raise


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
        tell_memory(parts, run)
        run.finish(parts.model, state)
        outcome = {"pruned": "pruned", "signal": "stopped"}.get(state.stopped or "", "finished")
    finally:
        summary = run.summary(state)
        for name, value in summary.items():
            run.trial.set(name, value)
        run.logger.finish(outcome, summary)


def tell_memory(parts: "Parts", run: Run) -> None:
    """Put the predicted and the measured peak of the GPU side by side; warn if they differ much."""
    if parts.device.type != "cuda" or parts.fits.predicted_gib is None:
        return
    predicted = parts.fits.predicted_gib
    measured = torch.cuda.max_memory_allocated(parts.device) / 2**30
    line = f"peak memory: {predicted:.2f} GiB predicted, {measured:.2f} GiB measured"
    run.notes["Plan"].append(line)
    log.info(line)
    if abs(measured / predicted - 1) > MEMORY_TOLERANCE:
        log.warning(f"{line}: they differ by more than {MEMORY_TOLERANCE:.0%}")


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
    fits: planner.Plan
    logger: Logger
    remarks: list[str]  # what had to be done differently, and why


def build(settings: Settings, overrides: list[str]) -> Parts:
    """Build every part. Cheap checks come first, so that a wrong request is refused within
    seconds."""
    quiet()
    blueprint = config.call(settings["model"])
    source, architecture, device, logger = config.together(
        lambda: config.call(settings["data"]),
        blueprint.config,
        lambda: pick_device(settings["hw"]["device"]),
        lambda: config.call(settings["logger"]),
    )
    width = getattr(architecture, "hidden_size", None)
    limit_threads(device, width)
    precision: Precision = config.call(settings["precision"])
    precision.choose(device, width=width)
    refuse_long_rows(settings, architecture)
    fits = planner.plan(settings, device=device, overrides=overrides)
    if fits.budget is not None and device.type == "cuda":
        budget.enforce(fits.budget, device)

    tokenizer = blueprint.load_tokenizer(source.texts(), vocab_size=architecture.vocab_size)
    corpus = source.tokenize(
        tokenizer, seed=settings["seed"], batch_size=settings["train"]["batch_size"]
    )
    torch.manual_seed(settings["seed"])
    model = blueprint.build(architecture, tokenizer, device=device)
    if fits.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    full_logits_because = probe_head(model)
    packs, unpacked_because = data.can_pack(model)
    remarks = [f"the loss takes full logits: {full_logits_because}"] if full_logits_because else []
    remarks += [] if packs else [f"one example per row, unpacked: {unpacked_because}"]
    batches, validation = (
        batches_of(examples, settings, shuffle=examples is corpus.train, packs=packs)
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
        fits=fits,
        logger=logger,
        remarks=remarks,
    )


def batches_of(
    examples: data.Examples, settings: Settings, *, shuffle: bool, packs: bool
) -> data.Batches:
    """Return the batches of one side; packed only if the model keeps examples apart."""
    return data.Batches(
        examples,
        batch_size=settings["train"]["batch_size"],
        max_length=settings["data"]["max_length"],
        seed=settings["seed"],
        shuffle=shuffle,
        pack=settings["data"]["pack"] and packs,
    )


def limit_threads(device: torch.device, width: int | None) -> None:
    """Give a narrow model one CPU thread, unless OMP_NUM_THREADS says otherwise.

    Several gain little on small matrices, and on a busy machine they wait for each other: measured
    at 128 wide on two cores, 29 against 42 ms a step when idle, 200 to 2,000 against 45 when busy.
    """
    if device.type == "cpu" and (width or NARROW) < NARROW and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def refuse_long_warmup(shape: Settings, steps: int) -> None:
    """Refuse a warm-up (and decay) that leaves the run no step at its peak learning rate."""
    shares = {key: shape[key] for key in ("warmup", "decay") if key in shape}
    taken = sum(steps_of(share, steps) for share in shares.values())
    if taken > steps or steps_of(shape["warmup"], steps) >= max(steps, 2):
        told = " and ".join(f"schedule.{key}={share:g}" for key, share in shares.items())
        raise RequestError(
            f"{told} take {taken:,} of the run's {steps:,} steps, so the peak learning rate is "
            "never "
            "reached: lower them (below 1 they are fractions of the run), or train longer"
        )


def derive(settings: Settings, parts: Parts) -> engine.Plan:
    """Derive the numbers of the run: steps from epochs and batch size, the micro-batch from what
    fits."""
    wanted = settings["train"]
    per_epoch = parts.batches.steps_per_epoch
    steps = wanted["max_steps"] or max(1, math.ceil(wanted["epochs"] * per_epoch))
    refuse_long_warmup(settings["schedule"], steps)
    return engine.Plan(
        steps=steps,
        steps_per_epoch=per_epoch,
        micro_batch_size=parts.fits.micro_batch_size,
        max_grad_norm=wanted["max_grad_norm"],
        validate_every=wanted["validate_every"],
        patience=wanted["patience"] or math.inf,
        log_every=wanted["log_every"],
        on_nonfinite=wanted["on_nonfinite"],
        on_spike=wanted["on_spike"],
        seed=settings["seed"],
        advice=parts.fits.advice,
    )


@contextmanager
def told_if_full(folder: Path) -> Iterator[None]:
    """Tell of a full disk in words, wherever it is met."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise RunError(
            f"{error.filename or folder}: {error.strerror}. Make room, then resume with "
            f"resume={folder}"
        ) from error


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


def run_info(run: Run, parts: Parts, state: engine.State) -> RunInfo:
    """Return what a logger shows of a run."""
    return RunInfo(
        id=run.facts["run_id"],
        name=run.folder.name,
        dir=run.folder,
        metrics_file=run.folder / "metrics.jsonl",
        job_type="train" if run.trial.number is None else "trial",
        group=run.trial.study,
        tags=(parts.name, run.settings["data"]["name"], run.settings["hw"]["name"]),
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
    for remark in parts.remarks:
        console.message(f"  {remark}")
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
    ]


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"
