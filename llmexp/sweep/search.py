"""A sweep from its settings to its report: what the Hydra plugin calls."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from optuna.trial import TrialState

from llmexp import durable
from llmexp.errors import RequestError, RunError
from llmexp.sweep import confirm, report, space, storage
from llmexp.sweep.compose import Composer, fingerprint
from llmexp.sweep.launch import Job, Launch
from llmexp.sweep.methods import Config
from llmexp.sweep.outcome import ranking
from llmexp.sweep.program import program, shown
from llmexp.sweep.runner import Runner
from llmexp.sweep.study import Claim, Study
from llmexp.sweep.trial import ENV, pack

log = logging.getLogger("llmexp.sweep")
METRIC = "best eval/loss of the run, minimized"
NAME = re.compile(r"(?!\.)[^/\x00-\x1f]{1,100}")


@dataclass(frozen=True)
class Settings:
    """conf/hydra/sweeper/optuna.yaml, word for word."""

    study_name: str
    storage: str | None
    n_trials: int  # of the study in total, not of this command
    n_jobs: int  # trials that a launcher without slots gets at a time
    seed: int | None
    params: dict[str, str]
    confirm: int
    max_failures: int
    max_retries: int
    allow_mismatch: bool
    restart: list[str]
    check: str | None
    sampler: Config
    pruner: Config


class Search:
    """One command's part in a study: its space, its storage, and how its trials become jobs."""

    def __init__(
        self,
        settings: Settings,
        composer: Composer,
        *,
        arguments: Sequence[str],  # the overrides of the command line, fixed and searched
        launch: Launch,
    ) -> None:
        if not NAME.fullmatch(settings.study_name):
            raise RequestError(
                f"hydra.sweeper.study_name={settings.study_name!r} must be a name of a folder: "
                "1 to 100 characters without '/', not beginning with a dot."
            )
        self.settings, self.composer, self.launch = settings, composer, launch
        given = [*(f"{key}={text}" for key, text in settings.params.items()), *arguments]
        self.space = space.parse(composer.parse(given))
        written = OmegaConf.to_container(composer.config.hydra.sweeper, resolve=False)
        assert isinstance(written, dict)
        self.address = storage.locate(
            settings.storage,
            composer.sweep_dir,
            literal="${" not in str(written["storage"]),
        )
        self.secret = storage.public(self.address) != self.address
        if self.secret:
            os.environ[storage.ENV_STORAGE] = self.address  # for the jobs, and in no file
        words = program()
        self.report = report.Report(settings.study_name, self.space, composer, words)

    def run(self) -> float | None:
        """Search, report, confirm if asked; return the best loss."""
        if self.settings.confirm:
            confirm.first_seed(self.composer.config)
        self.composer.check_corners(self.space)
        defaults = self.space.defaults(self.composer.config)
        with self.study(self.settings.study_name, self.settings.n_trials) as study:
            common = fingerprint(self.space, self.composer.settings(list(self.space.fixed)), METRIC)
            study.agree(common, allow_mismatch=self.settings.allow_mismatch)
            OmegaConf.save(self.composer.config, self.composer.sweep_dir / "multirun.yaml")
            if study.mended:
                log.warning("%s was torn; %d bytes were set aside", self.address, study.mended)
            if defaults is not None:
                study.enqueue([(defaults, {"of": "the config's own values"})])
            self._announce(study, defaults)
            self.run_trials(study, self.settings.pruner)
            return self._finish(study)

    def study(self, name: str, n_trials: float, *, fixed_points: bool = False) -> Study:
        """Return a study in the storage of this sweep."""
        return Study(
            name,
            self.space,
            folder=self.composer.sweep_dir,
            address=self.address,
            n_trials=n_trials,
            sampler=None if fixed_points else self.settings.sampler,
            pruner={"_target_": "optuna.pruners.NopPruner"}
            if fixed_points
            else self.settings.pruner,
            seed=self.settings.seed,
        )

    def run_trials(self, study: Study, pruner: Config) -> None:
        """Run what the study has left to run."""
        is_search = study.name == self.settings.study_name
        Runner(
            study,
            self.launch,
            job_of=lambda claim: self._job(study, claim, pruner),
            max_failures=self.settings.max_failures,
            max_retries=self.settings.max_retries,
            trial_done=lambda: self.report.update(study.optuna) if is_search else None,
        ).run()

    def _job(self, study: Study, claim: Claim, pruner: Config) -> Job:
        """Turn the start of a trial into a command line and a folder."""
        overrides = [*self.space.overrides(claim.params), *claim.point.get("overrides", [])]
        subdir = claim.point.get("folder") or self.composer.subdir(overrides, claim.number)
        folder = self.composer.sweep_dir / subdir
        study.note(claim, "folder", str(folder))
        spec = {
            "study": study.name,
            "number": claim.number,
            "attempt": claim.attempt,
            "lock": str(study.lock_file(claim.number)),
            "storage": None if self.secret else self.address,
            "pruner": pruner,
            "n_trials": self.settings.n_trials,
        }
        restart = self.settings.restart if claim.attempt else []
        return Job(claim.number, [*overrides, *restart], folder, {ENV: pack(spec)})

    def _announce(self, study: Study, defaults: dict[str, Any] | None) -> None:
        done = sum(
            trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.trials()
        )
        log.info(
            "study %s in %s: %d of %d trials done",
            study.name,
            storage.public(self.address) if "://" in self.address else shown(Path(self.address)),
            done,
            self.settings.n_trials,
        )
        for key, words in self.space.as_dict().items():
            log.info("  %s: %s", key, words)
        if defaults is None:
            log.info("  the config's own values lie outside: no trial is made of them")

    def _idle_pruner(self, study: Study) -> list[str]:
        """Say so where the trials were over before the pruner's warm-up was."""
        warm_up = self.settings.pruner.get("n_warmup_steps", 0)
        seen = max((len(trial.intermediate_values) for trial in study.trials()), default=0)
        never = self.settings.n_trials < self.settings.pruner["from_trials"]
        if not seen or seen > warm_up or never:
            return []
        return [
            "",
            f"Nothing could be pruned: the trials validated {seen} times, and the pruner leaves "
            f"them the first {warm_up}. Validate more often (train.validate_every), or less "
            "warm-up: hydra.sweeper.pruner.n_warmup_steps=...",
        ]

    def _finish(self, study: Study) -> float | None:
        lines = [*self.report.lines(study.optuna), *self._idle_pruner(study)]
        ranked = ranking(study.trials())
        winner = ranked[0] if ranked else None
        if winner is not None and self.settings.confirm:
            confirmed, winner = confirm.confirm(self, ranked[:3], self.settings.confirm)
            lines += ["", *confirmed, "", f"    {self.report.command(winner)}"]
        self.report.update(study.optuna, winner)
        folder = self.composer.sweep_dir
        if report.picture(study.trials(), self.space, folder / "sweep.png"):
            lines += [
                "",
                f"Written to {shown(folder)}: "
                "best.yaml, optimization_results.yaml, sweep.png, report.md",
            ]
        durable.write_text(folder / "report.md", "\n".join([f"# {study.name}", "", *lines, ""]))
        log.info("\n%s", "\n".join(lines))
        if winner is None:
            raise RunError(
                f"None of the {len(study.trials())} trials finished, see "
                f"{shown(folder / 'report.md')}. Where all were infeasible, "
                "search smaller learning rates or take a smaller model."
            )
        return float(winner.value)
