"""One run: its folder, and everybody who watches it (console, logger, sweep).

The engine tells a `Run` what happens to the weights; the run writes it down. The files are the
truth.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from llmexp import checkpoint, durable, outcome, report, validation
from llmexp.console import Console
from llmexp.data import Examples
from llmexp.doctor import About, Doctor, Finding
from llmexp.engine import Plan, State
from llmexp.errors import RunError
from llmexp.generate import continuations
from llmexp.health import ROLLBACKS
from llmexp.keeper import Keeper
from llmexp.logger import Logger
from llmexp.memory import oom
from llmexp.pace import Pace, Watched, peak_memory
from llmexp.precision import Precision
from llmexp.signals import Stop


class Trial(Protocol):
    """The sweep's side of a run (llmexp/sweep/trial.py)."""

    study: str | None
    number: int | None

    @property
    def params(self) -> Mapping[str, object]: ...
    def report(self, index: int, loss: float) -> bool: ...
    def set(self, name: str, value: object) -> None: ...


@dataclass
class Run:
    """Writes down what the engine does; knows nothing of how."""

    folder: Path
    settings: Mapping[str, Any]
    plan: Plan
    tokenizer: Any
    precision: Precision
    console: Console
    logger: Logger
    trial: Trial
    stop: Stop
    facts: Mapping[str, Any]  # what a checkpoint remembers of the run: config, data, environment
    notes: Mapping[str, list[str]]  # what report.md says of plan and data: title -> lines
    data: Mapping[str, Any]  # what the doctor knows of the data
    batches: Watched  # of the training
    examples: Examples  # of the validation set

    def __post_init__(self) -> None:
        self.metrics = durable.JsonLines(self.folder / "metrics.jsonl")
        self.timing = durable.JsonLines(self.folder / "timing.jsonl")
        self.samples = durable.JsonLines(self.folder / "samples.jsonl")
        self.pace = Pace(self.batches, self.plan)
        self.saved_at = time.monotonic()
        self.keeper = Keeper(
            self.folder, self.tokenizer, self.console, self.settings["checkpoint"]["keep"]
        )
        self.shown: dict[str, float] = {}  # the last numbers, for the progress bar
        self.doctor = Doctor(About(self.settings, self.plan.steps, self.data))
        self.news: list[Finding] = []  # of the doctor, that nobody was told of yet

    def resume_from(self, state: State, *, begun: bool) -> None:
        """Cut the files back to where `state` stands: what came after it happens again."""
        last = state.step if begun else -1
        for file in (self.metrics, self.samples):
            file.truncate_to(last if state.owed is None else last - 1)
        self.timing.truncate_to(last)
        known = [durable.read_lines(file.path)[0] for file in (self.metrics, self.timing)]
        self.doctor.replay(*known)

    def log(self, state: State, metrics: dict[str, float]) -> None:
        """Write one row where there is one to write, and move the progress bar."""
        if metrics:
            self._tell_findings(state)
            step = {"train/global_step": state.step}
            row = step | {k: plain(v) for k, v in metrics.items()}
            self.metrics.append(row)
            timing = self.pace.row(state, validated="eval/loss" in metrics)
            self.timing.append(step | timing)
            self.news = self.doctor.see(row, timing)
            self.logger.log(state.step, metrics | timing)
            self.shown |= metrics | timing
        self.console.step(state.step, self.plan.steps, self.shown)
        if "eval/loss" not in metrics:  # else it follows the line of the validation
            self._tell_news()

    def out_of_memory(self, event: oom.Event) -> None:
        """Tell and record that a step was redone in smaller pieces."""
        self.console.warning(event.line())
        self.timing.append({"train/global_step": event.step} | event.as_dict())
        self.logger.log(event.step, {"memory/micro_batch_size": event.micro_batch_size})

    def _tell_news(self) -> None:
        """Say what the doctor has found."""
        for found in self.news:
            self.console.warning(found.text())
        self.news = []

    def _tell_findings(self, state: State) -> None:
        """Tell and record the steps that were not well; fp16 finds its loss scale by overflows."""
        for found in state.health.findings:
            if found.event == "spike" or not self.precision.scaler.is_enabled():
                self.console.warning(found.line())
            self.timing.append({"train/global_step": found.step} | found.as_dict())
        state.health.findings.clear()

    def roll_back(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: State,
        metrics: dict[str, float],
        trouble: str,
    ) -> None:
        """Go back to the weights of the best validation and on with the next step, if asked to.

        Raises RunError where that is not asked for, or no cure any more.
        """
        path = checkpoint.path_of(self.folder / "checkpoints", state.best_step)
        again = f"The last checkpoint is intact: resume={self.folder}"
        if self.plan.on_nonfinite != "rollback":
            why = again
        elif len(state.health.rollbacks) >= ROLLBACKS:
            why = f"{ROLLBACKS} times back to the best weights did not help. {again}"
        elif wrong := checkpoint.defect(path):
            why = f"There is no way back to the best weights: {path} cannot be used: {wrong}"
        else:
            scaler = self.precision.scaler
            checkpoint.load(path, model=model, optimizer=optimizer, scaler=scaler)
            state.health.rolled_back(state.step, state.best_step)
            self._tell_findings(state)
            self.console.warning(f"{trouble}\nBack to the weights of step {state.best_step:,}.")
            return
        self.log(state, metrics)
        self._report()
        raise RunError(f"step {state.step:,}: {trouble}\n{why}")

    def stops(self) -> bool:
        """Say whether a signal asks to stop."""
        return bool(self.stop.requested)

    def validated(self, model: nn.Module, state: State, found: validation.Validation) -> None:
        """Keep the best model, write samples, tell the person, report to the sweep."""
        saved = None
        try:
            validation.keep(self.folder, self.keys, found, is_best=state.is_best)
        except OSError as error:
            self.console.warning(f"{validation.FILE} was not saved ({error})")
        if state.is_best:
            saved = self.keeper.best(model, step=state.step)
        if state.step > 0 or self.settings["model"]["weights"] is not None:  # else it is noise
            self._write_samples(model, state)
        assert state.eval_loss is not None
        self.console.validation(
            state.step,
            state.eval_loss,
            epoch=round(state.step / self.plan.steps_per_epoch, 2),
            epochs=round(self.plan.steps / self.plan.steps_per_epoch, 2),
            train_loss=state.train_loss,
            is_best=state.is_best,
            best=state.previous_best if state.is_best else state.best,
            verdict=self.doctor.verdict(),
            saved=saved,
        )
        self._tell_news()
        if self.trial.report(state.validations - 1, state.eval_loss):
            state.stopped = "pruned"

    @cached_property
    def keys(self) -> validation.Ints:
        """A number for each validation example, the same in all runs."""
        return validation.keys_of(self.examples)

    def _write_samples(self, model: nn.Module, state: State) -> None:
        wanted = self.settings["samples"]
        if not wanted["prompts"] or not wanted["max_new_tokens"]:
            return
        device = next(model.parameters()).device
        try:
            with self.precision.autocast(device):
                rows = continuations(
                    model,
                    self.tokenizer,
                    wanted["prompts"],
                    max_new_tokens=wanted["max_new_tokens"],
                    temperature=wanted["temperature"],
                    seed=self.settings["seed"],
                )
        except (RuntimeError, MemoryError) as error:
            if not oom.is_out_of_memory(error):
                raise
            self.console.warning("no samples this time: memory is short")
            return
        for row in rows:
            self.samples.append({"train/global_step": state.step} | row)
        self.logger.samples(state.step, rows)

    def checkpoint(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
        """Write a checkpoint if one is due: by steps, by the clock, after a validation, or on a
        signal."""
        wanted = self.settings["checkpoint"]
        minutes = (time.monotonic() - self.saved_at) / 60
        due = (
            state.step == 0
            or self.plan.validates_at(state.step)
            or bool(wanted["every_steps"] and state.step % wanted["every_steps"] == 0)
            or bool(wanted["every_minutes"] and minutes >= wanted["every_minutes"])
            or self.stop.save_requested
        )
        if self.stop.requested:
            state.stopped = state.stopped or "signal"
        if due or state.stopped:
            self.save(model, optimizer, state)

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
        """Write a checkpoint, after the rows it stands for are on the disk."""
        stands = state.as_dict()
        self._tell_findings(state)
        for file in (self.metrics, self.timing, self.samples):
            file.sync()
        # what a signal stopped goes on when it is resumed
        stands["stopped"] = None if state.stopped == "signal" else state.stopped
        remembered = {
            "state": stands,
            "micro_batch_size": self.plan.micro_batch_size,
            "precision": self.precision.name,
        }
        self.keeper.checkpoint(
            state.step,
            state.best_step,
            model=model,
            optimizer=optimizer,
            scaler=self.precision.scaler,
            state=remembered | dict(self.facts),
        )
        self.saved_at = time.monotonic()
        self.stop.save_requested = False

    def finish(self, model: nn.Module, state: State) -> None:
        """Write the last model and the report, and say where everything is.

        Raises RunError where the disk does not take the models.
        """
        if state.stopped != "signal":
            self.keeper.last(model, state.best_step)
        self._report()
        for name in ("loss.png", "report.md"):
            if (self.folder / name).is_file():
                self.logger.media(name, self.folder / name)
        self.console.done(
            self.folder,
            seconds=state.seconds,
            state=outcome.OF[state.stopped],
            best=state.best,
            best_step=state.best_step,
            prompt=next(iter(self.settings["samples"]["prompts"]), "Machine learning is"),
        )
        outcome.write(self.folder, state.stopped, state.step)

    def _report(self) -> None:
        try:
            report.write(self.folder, self.notes, self.doctor.about)
        except OSError as error:
            self.console.warning(f"no report this time ({error})")

    def summary(self, state: State) -> dict[str, Any]:
        """Return what a table of runs shows of this one."""
        return {
            "best/eval_loss": state.best,
            "best/step": state.best_step,
            "steps": state.step,
            "tokens": state.tokens,
            "nonfinite_steps": state.health.nonfinite,
            "spikes": state.health.spikes,
            "findings": ", ".join(self.doctor.told) or "none",
            "perf/tokens_per_second": self.pace.tokens_per_second,
            "perf/mfu": self.pace.mfu,
        } | peak_memory()


def plain(value: float) -> float | str:
    """Return a number as JSON has it: those that are not finite as text."""
    return value if math.isfinite(value) else str(value)


def write_request(folder: Path, settings: Mapping[str, Any], overrides: list[str]) -> None:
    """Write .hydra/: what was asked for, enough to ask for it again."""
    import yaml

    target = folder / ".hydra"
    durable.make_folder(target)
    text = yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False, allow_unicode=True)
    durable.write_text(target / "config.yaml", text)
    durable.write_text(target / "overrides.yaml", yaml.safe_dump(overrides, allow_unicode=True))
