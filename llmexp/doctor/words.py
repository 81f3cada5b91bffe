"""A line in words for each validation."""

import math

from llmexp.console.words import number
from llmexp.doctor.curves import Curves
from llmexp.doctor.learning import RISE, place, reference

SLOW = 0.002  # of a loss: a fall below it is hardly one


def verdict(seen: Curves, index: int) -> str:
    """Return what validation `index` says in the light of those before it, in a word or two."""
    value, best = seen.val[index], best_before(seen, index)
    if not math.isfinite(value):
        return "not a finite number"
    if best is None:
        return "before training" if seen.val_step[index] == 0 else "the first"
    low = seen.val[best]
    if value < low:
        return "still improving" if low - value > SLOW * low else "hardly improving"
    if value - low <= RISE * low:
        return "no better"
    then = reference(seen, best)
    return "overfitting" if seen.train_before[index] < 0.995 * then else "getting worse"


def best_before(seen: Curves, index: int) -> int | None:
    """Return the best validation before validation `index`, None where there is none."""
    known = [(loss, at) for at, loss in enumerate(seen.val[:index]) if math.isfinite(loss)]
    return min(known)[1] if known else None


def line(seen: Curves, index: int) -> str:
    """Return one line on validation `index`: what, how it was, what it means."""
    numbers = []
    if math.isfinite(seen.train_before[index]):
        numbers.append(f"train {number(seen.train_before[index])}")
    numbers.append(f"val {number(seen.val[index])}")
    best = best_before(seen, index)
    stays = ""
    if best is not None:
        numbers.append(f"was {number(seen.val[index - 1])}")
        if not seen.val[index] < seen.val[best]:
            stays = f"; best stays {when(seen, best).lower()}"
    said = f"{', '.join(numbers)}: {verdict(seen, index)}{stays}"
    return f"{when(seen, index)}: {said}"


def when(seen: Curves, index: int) -> str:
    """Name a validation by its epoch, or by its step where that is not known."""
    epoch = seen.val_epoch[index]
    return f"Epoch {epoch:.3g}" if math.isfinite(epoch) else f"Step {int(seen.val_step[index]):,}"


def lines(seen: Curves) -> list[str]:
    """Return a line per validation."""
    return [line(seen, index) for index in range(len(seen.val))]


def summary(seen: Curves) -> str:
    """Return one sentence on how the whole run went."""
    if len(seen.val) < 2 or not any(map(math.isfinite, seen.val)):
        return "Too few validations to say how it goes."
    best, last = seen.best, len(seen.val) - 1
    first, low = seen.val[0], seen.val[best]
    said = f"the validation loss went from {number(first)} to {number(low)} at {place(seen, best)}"
    if best < last:
        said += f", and ended at {number(seen.val[last])}"
    return ("Learning: " if low < 0.99 * first else "Not learning: ") + said + "."
