"""The engine: everything that happens to a weight.

`fit` is the whole of training on one screen. It speaks PyTorch and does not know where its parts
come from.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from llmexp.contracts import Accumulate, Batch, Batches, Run
from llmexp.health import Health
from llmexp.loss import Rows, chosen, loss_sum, token_losses
from llmexp.memory import oom
from llmexp.optimizer import set_learning_rate, step_if_finite
from llmexp.precision import Precision
from llmexp.validation import Validation, per_example


def fit(
    *,
    model: nn.Module,
    batches: Batches,  # batches[step]: the examples of that optimizer step
    validation: Batches,  # likewise; one epoch of it is the validation set
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int, int], float],  # (step, steps) -> multiplier of the peak learning rate
    precision: Precision,
    plan: "Plan",
    run: Run,
    state: "State",
    passes: Accumulate | None = None,  # another way to do what `accumulate` does
) -> "State":
    """Train until the steps or the patience are spent, or the run is told to stop.

    The gradient of a step is that of the mean loss over all its label tokens, however many
    micro-batches bring them.
    """
    if state.owed is not None:  # how good is it before training? Or: a signal cut this short
        assess(model, validation, precision, plan, run=run, state=state)
        run.checkpoint(model, optimizer, state)
    model.train()
    while state.step < plan.steps and not state.stopped:
        # -- batch, schedule ------------------------------------------------------------------
        started = time.perf_counter()
        batch = batches[state.step]
        learning_rate = set_learning_rate(optimizer, schedule(state.step, plan.steps))

        # -- forward, loss, backward, accumulate; in smaller pieces if they do not fit -----------
        for attempt in oom.attempts(model, plan, state.step, on_event=run.out_of_memory):
            with attempt:
                step_loss = (passes or accumulate)(model, batch, precision, plan.micro_batch_size)

        # -- clip, step, zero -----------------------------------------------------------------
        precision.scaler.unscale_(optimizer)
        grad_norm = clip_grad_norm_(model.parameters(), plan.max_grad_norm)
        skipped = plan.on_spike == "skip" and state.is_spike(step_loss, grad_norm, batch)
        if not skipped:
            step_if_finite(optimizer, precision.scaler, step_loss + grad_norm)
        precision.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        state.count(step_loss, grad_norm, batch, skipped=skipped)

        # -- log: the one place that waits for the GPU -------------------------------------------
        metrics: dict[str, float] = {}
        validates = plan.validates_at(state.step)
        if validates or plan.logs_at(state.step):
            metrics = state.training_metrics(learning_rate, plan)
            if trouble := state.trouble(plan, precision.scaler):  # train.on_nonfinite
                run.roll_back(model, optimizer, state, metrics, trouble)  # or stops the run
        state.seconds += time.perf_counter() - started

        # -- validate, remember the best, stop early; checkpoint ---------------------------------
        if validates:
            state.owed = metrics
            assess(model, validation, precision, plan, run=run, state=state)
        else:
            run.log(state, metrics)
        run.checkpoint(model, optimizer, state)  # if one is due, or a signal asks for it
    return state


def accumulate(
    model: nn.Module, batch: Batch, precision: Precision, micro_batch_size: int
) -> Tensor:
    """Add the gradient of one optimizer step to the parameters; return its loss, a detached scalar.

    The loss is the mean over the label tokens of the whole step, in nats per token. A function of
    its own, so that nothing of a pass that ran out of memory outlives it.
    """
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    with precision.autocast(device):  # casts each weight once, and keeps it for all micro-batches
        for micro_batch in batch.micro_batches(micro_batch_size):
            total += backward(model, micro_batch.to(device), batch.label_tokens, precision)
    return total


def backward(
    model: nn.Module, rows: Rows, label_tokens: int | Tensor, precision: Precision
) -> Tensor:
    """Add the gradient of one forward pass; return its share of the step's loss, detached."""
    loss = loss_sum(model, rows) / label_tokens
    with torch.autocast(loss.device.type, enabled=False):
        precision.scaler.scale(loss).backward()
    return loss.detach()


def assess(
    model: nn.Module,
    validation: Batches,
    precision: Precision,
    plan: "Plan",
    *,
    run: Run,
    state: "State",
) -> None:
    """Validate, judge, and write the row that is owed; a signal leaves it owed to the resume."""
    try:
        found = validate(
            model, validation, precision, plan, on_event=run.out_of_memory, stops=run.stops
        )
    except Interrupted:
        return
    metrics = (state.owed or {}) | state.judge(found.loss, plan.patience)
    state.owed = None
    run.log(state, metrics)
    run.validated(model, state, found)  # keeps the best, writes samples, reports to the sweep


@torch.no_grad()
def validate(
    model: nn.Module,
    validation: Batches,
    precision: Precision,
    plan: "Plan",
    *,
    on_event: Callable[[oom.Event], None] | None = None,
    stops: Callable[[], bool] = lambda: False,
) -> Validation:
    """Return the loss of each example of the validation set.

    Sums are kept in float64, on the CPU and in the order of the examples: the result does not
    depend on how the set is cut. Raises Interrupted when `stops()` becomes true on the way.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    for index in range(validation.steps_per_epoch):
        if stops():
            raise Interrupted
        batch = validation[index]
        for attempt in oom.attempts(model, plan, index, on_event=on_event):
            with attempt:
                losses, owners = [], []  # of the label tokens, [N]: nats, number of the example
                for micro_batch in batch.micro_batches(plan.micro_batch_size):
                    rows = micro_batch.to(device)
                    with precision.autocast(device):
                        losses.append(token_losses(model, rows))
                    owners.append(chosen(rows.segments, rows))
        found.append(per_example(losses, owners, batch.indices))
    model.train(was_training)
    return Validation(*torch.cat(found, dim=1))


class Interrupted(Exception):
    """A validation was told to stop half-way."""


@dataclass
class Plan:
    """What follows from the settings: derived once, checked, printed."""

    micro_batch_size: int  # rows per forward pass; shrinks if memory runs out
    steps: int = 0  # optimizer steps of the run
    steps_per_epoch: int = 1
    max_grad_norm: float = math.inf  # inf: measure the norm, never clip
    validate_every: float = 1.0  # epochs
    patience: float = math.inf  # validations without a new best; inf: never stop early
    log_every: int = 10  # optimizer steps
    seed: int = 42
    on_nonfinite: str = "skip"  # three steps in a row; rollback: to the best checkpoint
    on_spike: str = "report"  # skip: leave the update out, which waits for the GPU at each step
    advice: str = ""  # what to try when not even one row fits

    def logs_at(self, step: int) -> bool:
        """Say whether a row of metrics is due after `step` optimizer steps."""
        return step % self.log_every == 0 or step in (1, self.steps)

    def validates_at(self, step: int) -> bool:
        """Say whether a validation is due after `step` optimizer steps."""
        interval = self.validate_every * self.steps_per_epoch
        return step == self.steps or int(step / interval) > int((step - 1) / interval)


@dataclass
class State:
    """Where a run stands after `step` optimizer steps: all that a resume needs beside the
    tensors."""

    step: int = 0
    tokens: int = 0  # label tokens trained on
    best: float | None = None  # validation loss
    best_step: int = 0
    previous_best: float | None = None
    eval_loss: float | None = None  # of the last validation
    stale: int = 0  # validations since the best
    validations: int = 0
    owed: dict[str, float] | None = field(default_factory=dict)  # row of a validation to be done
    health: Health = field(default_factory=Health)
    stopped: str | None = None  # why the run ends before its steps are done
    # nats, tokens: since the last row, and since the last validation
    window: list[float] = field(default_factory=lambda: [0.0, 0.0])
    epoch: list[float] = field(default_factory=lambda: [0.0, 0.0])
    train_loss: float | None = None  # mean between the last two validations
    grad_norm: float | None = None  # of the last step, before clipping
    seconds: float = 0.0  # spent in training steps; differs between identical runs

    def __post_init__(self) -> None:
        if isinstance(self.health, dict):  # read from JSON
            self.health = Health(**self.health)
        # loss and gradient norm on the device; what is known of the step beside them
        self.pending: list[tuple[Tensor, tuple[int, int, tuple[int, ...], bool]]] = []

    def count(self, loss: Tensor, grad_norm: Tensor, batch: Batch, *, skipped: bool) -> None:
        """Take note of one finished step without waiting for its numbers."""
        self.step += 1
        self.tokens += batch.label_tokens
        known = (self.step, batch.label_tokens, batch.indices, skipped)
        self.pending.append((torch.stack([loss, grad_norm.to(loss)]), known))

    def is_spike(self, loss: Tensor, grad_norm: Tensor, batch: Batch) -> bool:
        """Say whether a step stands out from those before it; waits for its numbers."""
        self.settle()
        return self.health.is_spike(loss.item(), grad_norm.item(), batch.indices)

    def settle(self) -> None:
        """Wait for the numbers of the steps taken since the last call, and add them up in order."""
        if not self.pending:
            return
        rows = torch.stack([numbers for numbers, _ in self.pending]).tolist()
        for (loss, grad_norm), (_, known) in zip(rows, self.pending, strict=True):
            step, tokens, examples, skipped = known
            self.grad_norm = grad_norm
            if self.health.take(step, loss, grad_norm, examples=examples, skipped=skipped):
                for sums in (self.window, self.epoch):
                    sums[0] += loss * tokens
                    sums[1] += tokens
        self.pending.clear()

    def trouble(self, plan: Plan, scaler: torch.amp.GradScaler) -> str | None:
        """Say in words why the run is astray, or None.

        Asked at the rows of metrics only, so that no checkpoint between them changes the answer.
        """
        scale = scaler.get_scale() if scaler.is_enabled() else None
        return self.health.trouble(scale, first=plan.on_nonfinite == "stop")

    def training_metrics(self, learning_rate: float, plan: Plan) -> dict[str, float]:
        """Return the row since the last one: the mean loss over its tokens, and where the run
        stands."""
        self.settle()
        nats, tokens = self.window
        self.window = [0.0, 0.0]
        return {
            "train/loss": nats / tokens if tokens else math.nan,  # nats per label token
            "train/learning_rate": learning_rate,
            "train/grad_norm": math.nan if self.grad_norm is None else self.grad_norm,
            "train/epoch": self.step / plan.steps_per_epoch,
            "train/tokens": self.tokens,
            "train/nonfinite_steps": self.health.nonfinite,
            "train/spikes": self.health.spikes,
        }

    def judge(self, loss: float, patience: float) -> dict[str, float]:
        """Compare a validation loss with the best so far, and stop when patience ends; return its
        row."""
        nats, tokens = self.epoch
        self.train_loss, self.epoch = (nats / tokens if tokens else None), [0.0, 0.0]
        self.eval_loss, self.validations = loss, self.validations + 1
        if loss < (math.inf if self.best is None else self.best):  # never true of NaN
            self.previous_best, self.best, self.best_step, self.stale = (
                self.best,
                loss,
                self.step,
                0,
            )
        else:
            self.stale += 1
            self.stopped = "patience" if self.stale >= patience else self.stopped
        return {"eval/loss": loss, "eval/perplexity": perplexity(loss)}

    @property
    def is_best(self) -> bool:
        """Say whether the last validation is the best so far."""
        return self.validations > 0 and self.stale == 0

    def as_dict(self) -> dict[str, Any]:
        """Return the state as JSON-able values."""
        self.settle()
        return asdict(self)


def perplexity(loss: float) -> float:
    """Return exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
