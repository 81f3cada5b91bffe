"""Weights & Biases, so that it can never cost a training step.

Every call runs on a worker thread; tests/logger/ holds the faults that this was shaped by.
"""

import contextlib
import importlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmexp.errors import RequestError
from llmexp.logger import Histogram, Logger, RunInfo, pages
from llmexp.logger.fragments import supersede, sync_command, was_refused
from llmexp.logger.history import STEP, numbers, rows_by_step
from llmexp.logger.program import shielded
from llmexp.logger.redact import redact
from llmexp.logger.worker import Call, Worker, reason

log = logging.getLogger("llmexp")

MODES = ("online", "offline", "disabled")
INIT_SECONDS = 15
FINISH_SECONDS = 60
ABANDON_SECONDS = 2
_OLD_MODES = {"run": "online", "dryrun": "offline"}  # still seen in WANDB_MODE
_NOT_IN_A_PROJECT = "/\\#?%:"
_EXIT_CODES = {"finished": 0, "pruned": 0}  # any other state is 1


class Wandb(Logger):
    """One W&B run: online when a key is there and the server answers, else offline."""

    _worker: Worker | None = None
    _folder = Path()
    _wandb: Any = None
    _run: Any = None
    _last_step = 0

    def check(self) -> None:
        """Refuse a mode or a project name that cannot be."""
        self.mode = _OLD_MODES.get(self.mode, self.mode)
        if self.mode not in MODES:
            raise RequestError(f"logger.mode={self.mode} does not exist: use {', '.join(MODES)}")
        if set(self.project) & set(_NOT_IN_A_PROJECT):
            raise RequestError(
                f"logger.project={self.project} cannot be: W&B takes none of {_NOT_IN_A_PROJECT}"
            )

    def start(self, info: RunInfo) -> None:
        """Open the run in the background; one line will say whether it is online."""
        if self.mode == "disabled":
            log.info("W&B: disabled")
            return
        # crash reports and telemetry may carry more than a person wants to send, and at exit they
        # wait for a server that does not answer
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            # here, not on the worker: two threads that import at once can meet half-made modules
            self._wandb = importlib.import_module("wandb")
        except Exception as error:
            log.warning(f"W&B: off, wandb cannot be imported ({reason(error)})")
            return
        self._folder = info.dir
        self._worker = Worker("W&B", vital=("start", "metrics"))
        self._worker.submit("start", lambda: self._open(info))
        if info.resumed_from_step is not None:
            last = info.resumed_from_step
            self._worker.submit("the steps before the resume", lambda: self._replay(info, last))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the numbers of one step; several calls for one step are one row."""
        row = dict(metrics)
        self._submit("metrics", lambda: self._write(step, row))

    def histograms(self, step: int, found: Mapping[str, Histogram]) -> None:
        """Show how the values of some tensors are spread."""
        self._submit("histograms", lambda: self._write(step, self._spreads(found)))

    def samples(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Show generated texts as HTML, which survives an offline sync; wandb.Table does not."""
        page = pages.table(rows)
        self._submit("samples", lambda: self._write(step, {"samples": self._html(page)}))

    def media(self, name: str, path: Path) -> None:
        """Show a picture (.png) or a text (.md) at the last step."""
        self._submit(name, lambda: self._show_file(name, path))

    def finish(self, state: str, summary: Mapping[str, object]) -> None:
        """Close the run, within a bounded time whatever the server does."""
        if self.artifacts and (self._folder / "best").is_dir():
            self._submit("the best model", lambda: self._upload(self._folder / "best"))
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.close(lambda: self._close(state, summary))
        if worker.join(5):
            return
        log.info(f"W&B: closing its run, for {self._patience} s at most")
        if not worker.join(INIT_SECONDS + self._patience):
            log.warning("W&B: its process does not answer and is ended")
            self._kill()
            worker.join(5)

    @property
    def _patience(self) -> int:
        """Seconds for the last of the uploads; a model is large."""
        return FINISH_SECONDS * (10 if self.artifacts else 1)

    def _submit(self, feature: str, call: Call) -> None:
        if self._worker is not None:
            self._worker.submit(feature, call)

    # everything below runs on the worker

    def _open(self, info: RunInfo) -> None:
        supersede(info.dir / "wandb")
        with shielded():
            # the singleton must know too: it prints, and it asks for a key, before a run exists
            self._wandb.setup(self._settings())
            why_not = self._open_online(info)
            if why_not:
                self._run = self._init(info, "offline")
        if why_not:
            log.info(f"W&B: offline ({why_not}); to upload later: {sync_command(self._fragment())}")
        self._define_metrics()

    def _open_online(self, info: RunInfo) -> str:
        """Open the run on the server; return why that is not possible, or nothing."""
        if self.mode == "offline":
            return "as asked"
        try:
            # asks the server who we are, for 10 s at most: one that talks nonsense is found out
            # before a run is open (wandb-core 0.31 dies of it)
            if not self._wandb.login(prompt=False, verify=True):
                return "no API key"
            self._run = self._init(info, "online")
        except (Exception, SystemExit) as error:
            why_not = reason(error)
        else:
            log.info(f"W&B: online, {self._run.url}")
            return ""
        self._abandon()
        supersede(info.dir / "wandb")
        self._wandb.setup(self._settings())
        if "did not respond in time" in why_not:
            return "the server does not answer"
        return why_not

    def _init(self, info: RunInfo, mode: str) -> Any:
        tags = dict.fromkeys(str(redact(tag))[:64] for tag in (*info.tags, *self.tags) if tag)
        # an offline fragment is whole: once synced, it replaces what the server has of the run
        is_resumed = mode == "online" and info.resumed_from_step is not None
        return self._wandb.init(
            project=self.project,
            entity=self.entity,
            id=info.id,
            name=str(redact(info.name))[:128],
            group=str(redact(self.group or info.group or ""))[:128] or None,
            job_type=info.job_type,
            tags=list(tags),
            dir=str(info.dir),
            config=redact(info.config),
            mode=mode,
            resume="allow" if is_resumed else None,
            reinit="create_new",
            settings=self._settings(),
        )

    def _settings(self) -> Any:
        settings = self._wandb.Settings(
            mode=self.mode,
            silent=True,
            console="off",
            save_code=False,
            disable_code=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=self._patience,
            finish_timeout_raises=True,
        )
        # what a killed run loses, 15 s by default; the name is not public, so it may go
        with contextlib.suppress(Exception):
            settings.x_transaction_log_flush_interval = 2.0
        return settings

    def _define_metrics(self) -> None:
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        for name in ("eval/loss", "eval/perplexity"):
            self._run.define_metric(name, step_metric=STEP, summary="min")

    def _replay(self, info: RunInfo, last: int) -> None:
        """Show the steps up to `last` again."""
        metrics, timing, samples = (
            rows_by_step(info.dir / name, last)
            for name in (info.metrics_file.name, "timing.jsonl", "samples.jsonl")
        )
        for step in sorted({*metrics, *timing, *samples}):
            for row in metrics.get(step, []) + timing.get(step, []):
                self._write(step, numbers(row))
            if step in samples:
                self._write(step, {"samples": self._html(pages.table(samples[step]))})

    def _write(self, step: int, row: Mapping[str, object]) -> None:
        if step >= self._run.starting_step:  # the server of a resumed run has the others
            self._last_step = step
            self._run.log({STEP: step, **row}, step=step)

    def _show_file(self, name: str, path: Path) -> None:
        step = max(self._last_step, self._run.starting_step)
        self._write(step, {name: self._read(path)})

    def _read(self, path: Path) -> Any:
        if path.suffix == ".png":
            return self._wandb.Image(str(path))
        return self._html(pages.text(path.read_text(encoding="utf-8")))

    def _spreads(self, found: Mapping[str, Histogram]) -> dict[str, Any]:
        return {name: self._wandb.Histogram(np_histogram=held) for name, held in found.items()}

    def _html(self, page: str) -> Any:
        return self._wandb.Html(page, inject=False)  # inject: links a style sheet of wandb.ai

    def _close(self, state: str, summary: Mapping[str, object]) -> None:
        try:
            if self._run is not None:
                self._end_run(state, summary)
        finally:
            # here, where somebody waits for it with a clock, and not at exit
            with contextlib.suppress(Exception, SystemExit):
                self._wandb.teardown()

    def _end_run(self, state: str, summary: Mapping[str, object]) -> None:
        try:
            self._tell_end(state, summary)
            self._run.finish(exit_code=_EXIT_CODES.get(state, 1))
        except TimeoutError:
            trouble = f"the upload did not end in {self._patience} s"
        except Exception as error:
            trouble = f"closing its run failed ({reason(error)})"
        else:
            trouble = "the server refused some of the data" if was_refused(self._fragment()) else ""
        if trouble:
            log.warning(f"W&B: {trouble}; to upload later: {sync_command(self._fragment())}")

    def _tell_end(self, state: str, summary: Mapping[str, object]) -> None:
        trial = self._run.config.get("trial") or {}
        if trial.get("number") is not None:
            told = {"trial": {**trial, "state": state}}
            self._run.config.update(told, allow_val_change=True)
        if state in ("pruned", "stopped") or trial.get("number") is not None:
            self._run.tags = (*(self._run.tags or ()), state)
        self._run.summary.update(redact({"state": state, **summary}))

    def _upload(self, model: Path) -> None:
        artifact = self._wandb.Artifact(f"best-{self._run.id}", type="model")
        # read where it lies, without a copy in wandb's own folder
        artifact.add_dir(str(model), policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact)

    def _abandon(self) -> None:
        # a half-open run would keep its id, and its process tries to reach the server for minutes
        killer = threading.Timer(ABANDON_SECONDS, self._kill)
        killer.start()
        try:
            with contextlib.suppress(Exception, SystemExit):
                self._wandb.teardown()
        finally:
            killer.cancel()

    def _fragment(self) -> Path:
        return Path(self._run.settings.sync_dir)

    def _kill(self) -> None:
        # wandb waits for its process at exit without a limit, and has no public way to end it
        with contextlib.suppress(Exception):
            self._wandb.sdk.wandb_setup.singleton()._connection._proc._process.kill()
