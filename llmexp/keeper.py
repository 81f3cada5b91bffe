"""What a run keeps: its checkpoints, its best model and its last; and what a full disk does."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmexp import checkpoint, durable
from llmexp.console import Console
from llmexp.errors import RunError

FAILED_SAVES = 3  # in a row, before a run stops


@dataclass
class Keeper:
    """Saves into one run folder. A save that fails leaves what was saved before whole."""

    folder: Path
    tokenizer: Any
    console: Console
    keep: int  # newest checkpoints
    best_is_kept: bool = True  # false: best/ is that of an older validation; checkpoints know it
    failures: int = 0  # in a row

    def model(self, model: Any, name: str) -> Path | None:
        """Write model and tokenizer as a Hugging Face folder that appears at once or not at all.

        Returns None where that failed; raises RunError where it failed too often.
        """
        final = self.folder / name
        unfinished = durable.temporary(final)
        try:
            model.save_pretrained(unfinished)
            self.tokenizer.save_pretrained(unfinished)
            durable.sync_tree(unfinished)
            durable.replace_directory(unfinished, final)
        except Exception as error:  # OSError, and safetensors' own
            durable.discard(unfinished)
            self._failed(name, error)
            return None
        self.failures = 0
        return final

    def best(self, model: Any, *, step: int) -> Path | None:
        """Write the best model; where that fails, the checkpoint of the same step stands in.

        It does so before training, too: then the first step need not wait for a second copy.
        """
        self.best_is_kept = False
        path = self.model(model, "best") if step > 0 else None
        self.best_is_kept = path is not None
        return path

    def checkpoint(
        self,
        step: int,
        best_step: int,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        state: Mapping[str, Any],
    ) -> None:
        """Write the checkpoint of `step` and remove older ones, but never that of `best_step`.

        Raises RunError where the first of a run cannot be written, or saving failed too often.
        """
        folder = self.folder / "checkpoints"
        what = f"the checkpoint of step {step}"
        if step != best_step and self._best_is_lost(best_step):
            # a resume goes back before the best validation, and finds its weights again
            self._failed(what, f"the best weights, of step {best_step}, are nowhere")
            return
        state = dict(state) | {"best_is_kept": self.best_is_kept}
        try:
            checkpoint.save(
                folder, step, model=model, optimizer=optimizer, scaler=scaler, state=state
            )
            checkpoint.prune(folder, keep=self.keep, best_step=best_step)
        except checkpoint.SaveError as error:
            if not any(folder.glob("step-*")):  # better now than after hours
                raise RunError(f"{error}. This is the run's first checkpoint: make room") from error
            self._failed(what, error)
        else:
            self.failures = 0

    def last(self, model: torch.nn.Module, best_step: int) -> None:
        """Write the last model, and the best one if that failed before; `model` is spent then.

        Raises RunError where the disk does not take them.
        """
        again = f"resume={self.folder}"
        if self.model(model, "final") is None:
            raise RunError(f"the run is done but for its last model: {again}")
        if self.best_is_kept:
            return
        if self._best_is_lost(best_step):
            raise RunError(f"the best weights, of step {best_step}, could not be saved: {again}")
        checkpoint.load_model(self._of(best_step), model)
        if self.model(model, "best") is None:
            raise RunError(f"the run is done but for its best model: {again}")

    def _best_is_lost(self, best_step: int) -> bool:
        return not self.best_is_kept and checkpoint.defect(self._of(best_step)) is not None

    def _of(self, step: int) -> Path:
        return checkpoint.path_of(self.folder / "checkpoints", step)

    def _failed(self, what: str, error: Exception | str) -> None:
        self.failures += 1
        self.console.warning(f"{what} was not saved ({error}); what was saved before is whole")
        if self.failures >= FAILED_SAVES:
            raise RunError(
                f"saving failed {FAILED_SAVES} times in a row ({error}): make room, then resume "
                f"with resume={self.folder}"
            )
