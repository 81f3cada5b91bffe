"""One training job: build the parts that the settings name, say what will be done, train."""

import errno
import logging
import math
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llmexp import checkpoint, durable, engine, resume
from llmexp.announce import announce, plan_lines, run_info, tell_memory
from llmexp.console import Console
from llmexp.doctor.facts import facts
from llmexp.errors import RequestError, RunError
from llmexp.logger import gradients
from llmexp.memory import oom
from llmexp.outcome import told_if_failed
from llmexp.pace import Watched
from llmexp.parts import Parts, build
from llmexp.run import Run, Trial, write_request
from llmexp.schedule import steps_of
from llmexp.signals import Stop, terminable
from llmexp.sweep.trial import end_in_words

log = logging.getLogger("llmexp")
Settings = Mapping[str, Any]


def train(settings: Settings, folder: Path, overrides: list[str], trial: Trial) -> float:
    """Train as `settings` say, in the run folder `folder`; return the best validation loss.

    Raises RequestError for what cannot be done, RunError for what went wrong on the way.
    """
    with (
        durable.Lock(folder),
        removed_if_refused(folder),
        Console() as console,
        terminable(),
        ExitStack() as begun,
        told_if_full(folder),
    ):
        durable.remove_leftovers(folder)
        start = resume.where_to_start(settings["resume"], folder)
        saved = checkpoint.peek(start).state if start else {}
        resume.refuse_other_settings(saved.get("config", settings), settings, folder)
        parts = build(settings, overrides, taken=saved.get("taken"), graphs=saved.get("graphs"))
        fingerprint = parts.corpus.fingerprint
        resume.refuse_other_data(saved.get("data", fingerprint), fingerprint)
        plan = derive(settings, parts)
        plan.micro_batch_size = resume.micro_batch_size(saved, settings, plan)
        if resume.is_finished(folder, saved, plan):
            return resume.tell_finished(folder, saved["state"])
        begun.enter_context(told_if_failed(folder))
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
                "taken": parts.fits.taken,
                "graphs": parts.passes is not None,
                "run_id": saved.get("run_id") or uuid.uuid4().hex[:8],
            },
            notes={"Plan": plan_lines(settings, parts, plan), "Data": parts.corpus.report.lines()},
            data=facts(parts.corpus, packs=parts.packs),
            batches=Watched(parts.batches),
            examples=parts.corpus.validation,
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


def fit(parts: Parts, plan: engine.Plan, run: Run, state: engine.State) -> None:
    """Run the engine between the logger's start and its finish, whatever happens."""
    run.logger.start(run_info(run, parts, state))
    outcome = "crashed"
    try:
        run.pace.start(state, parts.model, parts.precision)
        watch(parts, run, state)
        with told_if_out_of_memory(state, plan):
            engine.fit(
                model=parts.model,
                batches=run.batches,
                validation=parts.validation,
                optimizer=parts.optimizer,
                schedule=parts.schedule,
                precision=parts.precision,
                plan=plan,
                run=run,
                state=state,
                passes=parts.passes,
            )
        tell_memory(parts, run)
        run.finish(parts.model, state)
        outcome = {"pruned": "pruned", "signal": "stopped"}.get(state.stopped or "", "finished")
        outcome = end_in_words(run.trial, outcome)
    except BaseException as error:
        outcome = end_in_words(run.trial, outcome, error)
        raise
    finally:
        summary = run.summary(state)
        for name, value in summary.items():
            run.trial.set(name, value)
        run.logger.finish(outcome, summary)


def watch(parts: Parts, run: Run, state: engine.State) -> None:
    """Show the gradients, if the logger is asked for them."""
    if every := run.logger.gradients:
        gradients.watch(
            parts.model,
            parts.optimizer,
            every=every,
            step=lambda: state.step + 1,
            show=run.logger.histograms,
        )


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
        advice=advice(parts),
    )


def advice(parts: Parts) -> str:
    """Return what to try when memory runs out all the same."""
    graphs = "" if parts.passes is None else "Set train.cuda_graphs=false: graphs hold memory.\n"
    return graphs + parts.fits.advice


@contextmanager
def told_if_out_of_memory(state: engine.State, plan: engine.Plan) -> Iterator[None]:
    """Tell in words of memory that ran out where nothing is redone: in the update of the weights,
    which cannot be cut, and in between."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not oom.is_out_of_memory(error):
            raise
        raise RunError(
            f"Out of memory after step {state.step}, outside of forward and backward, where a "
            f"smaller micro-batch does not help ({oom.first_line(error)}). "
            f"The last checkpoint is intact.\n{plan.advice}"
        ) from None


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
