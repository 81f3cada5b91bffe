"""Where a run begins: at one of its checkpoints, at step 0, or not at all, since it is finished."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmexp import checkpoint, durable, outcome
from llmexp.engine import Plan, State
from llmexp.errors import RequestError
from llmexp.run import Run

if TYPE_CHECKING:
    from llmexp.parts import Parts

log = logging.getLogger("llmexp")
Settings = Mapping[str, Any]


def where_to_start(resume: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to continue from, or None to begin at step 0.

    Raises RequestError where the folder holds a run and nobody asked to continue it, and where none
    of its checkpoints can be used: a run is never silently begun again.
    """
    if resume is None:
        if (folder / "metrics.jsonl").exists():
            raise RequestError(
                f"{folder} holds a run already: add resume=auto to continue it, or choose another "
                "run.name"
            )
        return None
    checkpoints = folder / "checkpoints"
    durable.remove_leftovers(checkpoints)
    if resume != "auto" and Path(resume).parent.name == "checkpoints":
        return checkpoint.find(Path(resume))[0]
    if any(checkpoints.glob("step-*")):
        path, notes = checkpoint.find(folder)
        for note in notes:
            log.warning(note)
        return path
    refuse_lost_checkpoints(folder)
    return None


def refuse_lost_checkpoints(folder: Path) -> None:
    """Refuse to begin again where steps were done and no checkpoint is left of them.

    The first checkpoint is that of step 0, so a run that was killed before it has no steps.
    """
    metrics = folder / "metrics.jsonl"
    rows = durable.read_lines(metrics)[0] if metrics.exists() else []
    last = rows[-1]["train/global_step"] if rows else 0
    if last > 0:
        raise RequestError(
            f"{folder} has no checkpoint, though its metrics.jsonl reaches step {last:,}: there is "
            "nothing to continue from, and nothing was deleted. Bring its checkpoints/ back, or "
            "start a new run with another run.name"
        )
    if metrics.exists():
        log.info(f"{folder} has no checkpoint yet: it begins again at step 0")


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


def micro_batch_size(saved: Mapping[str, Any], settings: Settings, plan: Plan) -> int:
    """Return the rows per pass: those that the run found, unless other ones are asked for now."""
    if not saved:
        return plan.micro_batch_size
    before = saved["config"]
    asked = [s["train"]["micro_batch_size"] for s in (before, settings)]
    if asked[0] != asked[1] or before["hw"] != settings["hw"]:
        return plan.micro_batch_size
    found: int = saved["micro_batch_size"]
    return found


def is_finished(folder: Path, saved: Mapping[str, Any], plan: Plan) -> bool:
    """Say whether the run that `saved` was written by has nothing left to do under `plan`."""
    left = outcome.read(folder)
    if not saved or left.get("outcome") not in outcome.DONE:
        return False
    step = saved["state"]["step"]
    if left.get("step") != step:
        return False
    return step >= plan.steps or stays_stopped(saved["state"], plan.patience)


def stays_stopped(state: Mapping[str, Any], patience: float) -> bool:
    """Say whether what ended a run early still holds: more patience undoes the end it made."""
    ended = state["stopped"]
    return ended is not None and (ended != "patience" or state["stale"] >= patience)


def tell_finished(folder: Path, state: Mapping[str, Any]) -> float:
    """Say that there is nothing to do; return the best validation loss."""
    best = math.nan if state["best"] is None else float(state["best"])
    log.info(
        f"{folder} is finished: {state['step']:,} steps, best validation loss {best:.4g} at step "
        f"{state['best_step']:,}. Nothing was changed; a larger train.epochs lets it go on"
    )
    return best


def restore(start: Path | None, parts: "Parts", run: Run) -> State:
    """Load the checkpoint `start`, if there is one, and cut the run's files back to it."""
    state = State()
    if start is None and not run.settings["train"]["validate_first"]:
        state.owed = None
    if start is not None:
        saved = checkpoint.peek(start)
        remembered = checkpoint.load(
            start, model=parts.model, optimizer=parts.optimizer, scaler=parts.precision.scaler
        )
        state = State(**remembered["state"])
        if not stays_stopped(remembered["state"], run.plan.patience):
            state.stopped = None
        if Path(run.settings["resume"]).parent.name == "checkpoints":  # the one that was asked for
            checkpoint.remove_after(start.parent, state.step)
        run.keeper.best_is_kept = remembered["best_is_kept"]
        log.info(f"continuing {run.folder} at step {state.step:,}")
        before = {**saved.environment, "precision": remembered["precision"]}
        now = {**checkpoint.environment(parts.model), "precision": parts.precision.name}
        for line in checkpoint.environment_differences(before, now):
            log.warning(line)
    run.resume_from(state, begun=start is not None)
    return state
