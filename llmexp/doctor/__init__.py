"""The doctor: says in words how a run goes, from the rows it has written and nothing else.

* rows      of a run under way, thinned
* curves    the rows as arrays
* learning, steps, machine    the rules: each looks at the curves and returns a finding, or None
* words     a line per validation

The same functions serve the console while training, report.md, and a resumed run, which says what
the run that never stopped would have said. Imports neither torch nor Hydra.
"""

from collections.abc import Callable, Sequence

import numpy as np

from llmexp.doctor import learning, machine, steps
from llmexp.doctor.curves import About, Curves, Row, curves
from llmexp.doctor.findings import Cause, Finding
from llmexp.doctor.rows import Rows
from llmexp.doctor.words import best_before, lines, summary, verdict, when

RULES: tuple[Callable[[Curves, About], Finding | None], ...] = (
    steps.not_finite,
    learning.rising,
    learning.flat,
    learning.overfitting,
    learning.underfitting,
    steps.gradients,
    steps.spikes,
    steps.clipping,
    steps.warmup,
    machine.small_validation,
    machine.padding,
    machine.data_bound,
    machine.spill,
    machine.repeating,
)
FIRST_LOOK = 16  # rows of metrics; then at 32, 64, ... and at each validation


def diagnose(seen: Curves, about: About) -> list[Finding]:
    """Return what is not well with a run, the most serious first."""
    with np.errstate(all="ignore"):  # curves that diverge overflow here too
        return [found for rule in RULES if (found := rule(seen, about)) is not None]


class Doctor:
    """Looks at a run while it trains, and says each thing once."""

    def __init__(self, about: About) -> None:
        self.about = about
        self._metrics, self._timing = Rows(), Rows()
        self.told: list[str] = []  # names of what was found so far

    def see(self, metrics: Row, timing: Row | None = None) -> list[Finding]:
        """Take the next row; return what is found now and was not found before."""
        self._metrics.append(metrics)
        if timing is not None:
            self._timing.append(timing)
        count = self._metrics.count
        doubled = count >= FIRST_LOOK and count & (count - 1) == 0
        if not doubled and "eval/loss" not in metrics:
            return []
        found = [f for f in diagnose(self.curves(), self.about) if f.name not in self.told]
        self.told += [finding.name for finding in found]
        return found

    def replay(self, metrics: Sequence[Row], timing: Sequence[Row]) -> None:
        """Take the rows of a run that goes on; what was told then is not told again."""
        paces = {row.get("train/global_step"): row for row in timing if "event" not in row}
        for row in metrics:
            self.see(row, paces.get(row.get("train/global_step")))

    def curves(self) -> Curves:
        """Return what was seen so far."""
        return curves(self._metrics, self._timing)

    def verdict(self) -> str:
        """Return what the last validation says, and since when if it is no better."""
        seen = self.curves()
        last = len(seen.val) - 1
        if last < 0:
            return ""
        best = best_before(seen, last)
        since = best is not None and not seen.val[last] < seen.val[best]
        ago = f" since {when(seen, best).lower()}" if best is not None and since else ""
        return f"{verdict(seen, last)}{ago}"


__all__ = [
    "About",
    "Cause",
    "Curves",
    "Doctor",
    "Finding",
    "curves",
    "diagnose",
    "lines",
    "summary",
    "verdict",
]
