"""Whether training is well: steps that are not finite, spikes, a loss scale that collapses.

A step that is not finite changes no weight (llmexp/optimizer.py). Here is what is told about it,
and when a run has gone astray. What is decided here depends on the numbers of the steps alone,
never on when they were read, so that a resumed run decides the same.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

WINDOW = 128  # steps a spike is measured against; numbers of https://github.com/allenai/OLMo-core
SIGMAS = 6.0
IN_A_ROW = 3  # steps without an update, before a run is astray
OVERFLOWS = 20  # the same in fp16, whose loss scale is found by overflows: 2^16 is 1 after 16
ROLLBACKS = 3  # in a run, before it stops
SHOWN = 8  # examples on a line of the console


@dataclass(frozen=True)
class Finding:
    """A step that was not well."""

    step: int  # counted from 1, as metrics.jsonl does
    event: str  # nonfinite or spike
    loss: float  # nats per label token
    grad_norm: float  # before clipping
    skipped: bool  # the weights were not updated
    examples: tuple[int, ...]  # of the step: numbers of training examples, from 0

    def line(self) -> str:
        """One line for the person."""
        what = "a spike" if self.event == "spike" else "not finite"
        done = "the update is skipped" if self.skipped else "the update is done all the same"
        return (
            f"step {self.step:,} is {what} (loss {self.loss:.4g}, gradient norm "
            f"{self.grad_norm:.4g}): {done}; training examples {named(self.examples)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """One record for timing.jsonl: numbers that are not finite as text."""
        numbers = {
            name: value if math.isfinite(value) else str(value)
            for name, value in (("loss", self.loss), ("grad_norm", self.grad_norm))
        }
        row = asdict(self) | numbers | {"examples": list(self.examples)}
        del row["step"]
        return row


@dataclass
class Health:
    """What the steps so far were like: a part of the run's state, JSON-able."""

    nonfinite: int = 0  # steps without an update because a number was not finite
    spikes: int = 0
    streak: list[list[int]] = field(default_factory=list)  # such steps in a row: [step, *examples]
    longest: list[list[int]] = field(default_factory=list)  # the longest streak so far
    losses: list[float] = field(default_factory=list)  # of the last finite steps
    grad_norms: list[float] = field(default_factory=list)  # likewise
    rollbacks: list[list[int]] = field(default_factory=list)  # [at step, weights of step]
    size: int = 0  # examples of a whole step; the last one of an epoch may be smaller, and noisier

    def __post_init__(self) -> None:
        self.findings: list[Finding] = []  # that nobody was told of yet

    def take(
        self,
        step: int,
        loss: float,
        grad_norm: float,
        *,
        examples: tuple[int, ...],
        skipped: bool,
    ) -> bool:
        """Take note of the next step; return whether its numbers are finite."""
        finding = Finding(step, "spike", loss, grad_norm, skipped, examples)
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            self.findings.append(replace(finding, event="nonfinite", skipped=True))
            self.nonfinite += 1
            self.streak.append([step, *examples])
            self.longest = max(self.longest, self.streak, key=len)[:OVERFLOWS]
            return False
        self.streak = []
        self.size = max(self.size, len(examples))
        if len(examples) < self.size:
            return True
        if self.is_spike(loss, grad_norm, examples):
            self.findings.append(finding)
            self.spikes += 1
        self.losses = [*self.losses[1 - WINDOW :], loss]
        self.grad_norms = [*self.grad_norms[1 - WINDOW :], grad_norm]
        return True

    def is_spike(self, loss: float, grad_norm: float, examples: Sequence[int]) -> bool:
        """Say whether either number of a whole step stands out from those of the steps before."""
        if len(examples) < self.size:
            return False
        return stands_out(self.losses, loss) or stands_out(self.grad_norms, grad_norm)

    def trouble(self, scale: float | None, *, first: bool) -> str | None:
        """Say in words why the run is astray, or None while it is not.

        `scale`: the loss scale, None where there is none; `first`: the first step that is not
        finite is enough.
        """
        if scale is not None and (scale < 1 or len(self.longest) >= OVERFLOWS):
            return COLLAPSED.format(scale=f"{scale:g}", count=len(self.longest))
        if scale is not None or len(self.longest) < (1 if first else IN_A_ROW):
            return None
        rows = [f"    step {step:,}: {named(examples)}" for step, *examples in self.longest]
        return "\n".join([NOT_FINITE, *rows])

    def rolled_back(self, step: int, to: int) -> None:
        """Forget what the steps with other weights were like."""
        self.rollbacks.append([step, to])
        self.streak, self.longest, self.losses, self.grad_norms = [], [], [], []


COLLAPSED = """the fp16 loss scale collapsed to {scale} after {count} overflows in a row: \
gradients or activations are beyond what fp16 can hold (65,504).
  precision           bf16 where the card has it, else fp32
  the learning rate   a model that diverges overflows too: lower optimizer.lr"""

NOT_FINITE = """the loss or the gradient norm was not finite, so no weight was updated.
  the learning rate   lower optimizer.lr, or lengthen schedule.warmup
  precision           try precision=fp32: what is finite there was an overflow
  the data            look at the examples of these steps (numbers of training examples, from 0)"""


def stands_out(window: Sequence[float], value: float) -> bool:
    """Say whether `value` lies more than 6 standard deviations above the mean of `window`.

    Half a window has to be known first. A value that is not finite is not judged.
    """
    count = len(window)
    if count < WINDOW // 2 or not math.isfinite(value):
        return False
    mean = math.fsum(window) / count
    variance = math.fsum((known - mean) ** 2 for known in window) / (count - 1)
    return value > mean + SIGMAS * math.sqrt(variance)


def named(examples: Sequence[int]) -> str:
    """Return example numbers for a line of text."""
    more = f" and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
    return ", ".join(map(str, examples[:SHOWN])) + more
