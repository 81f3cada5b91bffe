"""Weights & Biases, so that it can never cost a training step.

Every call runs on a worker thread; tests/logger/ holds the faults that this was shaped by.
"""

import html
import importlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from llmexp.errors import RequestError
from llmexp.logger import Logger, RunInfo
from llmexp.logger.history import logged_metrics, logged_samples
from llmexp.logger.redact import redact, redact_argv
from llmexp.logger.worker import Worker

log = logging.getLogger("llmexp")

MODES = ("online", "offline", "disabled")
INIT_SECONDS = 15
FINISH_SECONDS = 60
STEP = "train/global_step"
_OLD_MODES = {"run": "online", "dryrun": "offline"}  # still seen in WANDB_MODE


class Wandb(Logger):
    """One W&B run: online when a key is there and the server answers, else offline.

    Raises RequestError for a mode that does not exist.
    """

    def __init__(
        self,
        *,
        project: str = "llmexp",
        entity: str | None = None,
        mode: str = "online",
        group: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        mode = _OLD_MODES.get(mode, mode)
        if mode not in MODES:
            raise RequestError(f"logger.mode={mode} does not exist: use {', '.join(MODES)}")
        super().__init__(project=project, entity=entity, mode=mode, group=group, tags=tags)
        self._worker: Worker | None = None
        self._wandb: ModuleType = sys
        self._run: Any = None
        self._last_step = 0

    def start(self, info: RunInfo) -> None:
        """Open the run in the background; one line will say whether it is online."""
        if self.mode == "disabled":
            log.info("W&B: disabled")
            return
        # crash reports and telemetry may carry more than a person wants to send, and at exit they wait
        # for a server that does not answer
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            # here, not on the worker: two threads that import at once can meet half-made modules
            self._wandb = importlib.import_module("wandb")
        except Exception as error:
            log.warning(f"W&B: off, because wandb cannot be imported ({error})")
            return
        self._worker = Worker("W&B")
        self._worker.submit("start", lambda: self._open(info))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the numbers of one step; several calls for one step are one row."""
        row = {STEP: step, **metrics}
        self._submit("metrics", lambda: self._write(step, row))

    def samples(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Show generated texts as HTML, which survives an offline sync; wandb.Table does not."""
        page = _as_html(rows)
        self._submit(
            "samples",
            lambda: self._write(step, {"samples": self._wandb.Html(page, inject=False)}),
        )

    def media(self, name: str, path: Path) -> None:
        """Show a picture (.png) or a text (.md) at the last step."""
        self._submit(name, lambda: self._write(self._last_step, {name: self._read(path)}))

    def finish(self, state: str, summary: Mapping[str, object]) -> None:
        """Close the run, within a bounded time whatever the server does."""
        if self._worker is None:
            return
        self._submit("summary", lambda: self._summarise(state, summary))
        self._submit("finish", lambda: self._close(state))
        if not self._worker.close(INIT_SECONDS + FINISH_SECONDS):
            log.warning("W&B: did not end in time and was left behind")
        self._worker = None

    def _submit(self, feature: str, call: Any) -> None:
        if self._worker is not None:
            self._worker.submit(feature, lambda: self._run is not None and call())

    # everything below runs on the worker

    def _open(self, info: RunInfo) -> None:
        _supersede(info.dir / "wandb")
        # the singleton must know too: it prints, and it asks for a key, before a run exists
        self._wandb.setup(self._settings())
        reason = self._open_online(info)
        if reason:
            self._run = self._init(info, "offline")
            folder = shlex.quote(str(_relative(Path(self._run.settings.sync_dir))))
            log.info(f"W&B: offline ({reason}); to upload later: wandb sync {folder}")
        self._define_metrics()
        self._replay(info)

    def _open_online(self, info: RunInfo) -> str:
        """Open the run on the server; return why not, or nothing."""
        if self.mode == "offline":
            return "as asked"
        try:
            # asks the server who we are: 10 s at most, and a server that talks nonsense is found out
            # before a run is open (wandb-core 0.31 dies of it)
            if not self._wandb.login(prompt=False, verify=True):
                return "no API key"
            self._run = self._init(info, "online")
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split())[:160]
        else:
            log.info(f"W&B: online, {self._run.url}")
            return ""
        self._wandb.teardown()  # else the half-open run keeps its id
        _supersede(info.dir / "wandb")
        self._wandb.setup(self._settings())
        return reason

    def _init(self, info: RunInfo, mode: str) -> Any:
        with _redacted_argv():
            return self._wandb.init(
                project=self.project,
                entity=self.entity,
                id=info.id,
                name=redact(info.name),
                group=redact(self.group or info.group),
                job_type=info.job_type,
                tags=list(dict.fromkeys([*info.tags, *self.tags])),
                dir=str(info.dir),
                config=redact(info.config),
                mode=mode,
                # an offline fragment is whole: when it is synced it replaces what the server has
                resume="allow" if mode == "online" and info.resumed_from_step is not None else None,
                reinit="create_new",
                settings=self._settings(),
            )

    def _settings(self) -> Any:
        settings = self._wandb.Settings(
            mode="offline" if self.mode == "offline" else "online",
            silent=True,
            console="off",
            save_code=False,
            disable_code=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        try:
            # what a killed run loses, 15 s by default; the name is not public, so it may go
            settings.x_transaction_log_flush_interval = 2.0
        except Exception:
            log.debug("wandb no longer knows x_transaction_log_flush_interval")
        return settings

    def _define_metrics(self) -> None:
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        for name in ("eval/loss", "eval/perplexity"):
            self._run.define_metric(name, step_metric=STEP, summary="min")

    def _replay(self, info: RunInfo) -> None:
        """Log the steps before the resume point again: a fragment alone is then the whole run."""
        if info.resumed_from_step is None:
            return
        for step, metrics in logged_metrics(info.metrics_file, info.resumed_from_step):
            if step >= self._run.step:  # what the server has already is left alone
                self._write(step, {STEP: step, **metrics})
        for step, rows in logged_samples(info.dir / "samples.jsonl", info.resumed_from_step):
            if step >= self._run.step:
                self._write(step, {"samples": self._wandb.Html(_as_html(rows), inject=False)})

    def _write(self, step: int, row: Mapping[str, object]) -> None:
        self._last_step = max(self._last_step, step)
        self._run.log(dict(row), step=step)

    def _read(self, path: Path) -> Any:
        if path.suffix == ".png":
            return self._wandb.Image(str(path))
        text = html.escape(path.read_text(encoding="utf-8"))
        return self._wandb.Html(f"<pre>{text}</pre>", inject=False)

    def _summarise(self, state: str, summary: Mapping[str, object]) -> None:
        if state not in ("finished", "failed"):
            self._run.tags = (*(self._run.tags or ()), state)
        self._run.summary.update({"state": state, **_plain(redact(summary))})

    def _close(self, state: str) -> None:
        try:
            self._run.finish(exit_code=0 if state in ("finished", "pruned") else 1)
        except TimeoutError:
            folder = shlex.quote(str(_relative(Path(self._run.settings.sync_dir))))
            log.warning(f"W&B: the upload did not end in {FINISH_SECONDS} s; wandb sync {folder}")
        finally:
            self._wandb.teardown()  # here, where its end is bounded, and not at exit


def _plain(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, Mapping) else {}


def _relative(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _supersede(folder: Path) -> None:
    """Move older fragments of this run away, so that the newest one alone is the run."""
    for old in sorted(folder.glob("*run-*-*")):
        if old.is_dir() and not old.is_symlink():
            (folder / "superseded").mkdir(exist_ok=True)
            old.rename(folder / "superseded" / old.name)


@contextmanager
def _redacted_argv() -> Iterator[None]:
    real = sys.argv
    sys.argv = redact_argv(real)
    try:
        yield
    finally:
        sys.argv = real


def _as_html(rows: Sequence[Mapping[str, str]]) -> str:
    names = list(rows[0]) if rows else []
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(row[name]))}</td>" for name in names) + "</tr>"
        for row in rows
    )
    style = "table{font:14px sans-serif;border-collapse:collapse}td,th{border:1px solid #ccc;"
    return (
        f"<meta charset='utf-8'><style>{style}padding:6px;text-align:left;vertical-align:top;"
        f"white-space:pre-wrap}}</style><table><tr>{head}</tr>{body}</table>"
    )
