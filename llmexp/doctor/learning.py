"""What the loss curves say: rising, flat, overfitting, underfitting."""

import math

import numpy as np

from llmexp.console.words import number
from llmexp.doctor.curves import About, Curves, Floats, highest, lowest, mean
from llmexp.doctor.findings import Finding, finding

FEW_ROWS = 8  # of training, below which a curve is not judged
FEW_VALIDATIONS = 3  # likewise, where there are fewer rows than that
FEW_STEPS = 30
RISE = 0.01  # of a loss, from which on it has risen
FLAT = 0.01  # of a loss, below which it has not fallen
SPARE = 0.9  # of the loss that frequencies give: what knows more lies far below it


def rising(seen: Curves, about: About) -> Finding | None:
    """The training loss lies above where it began: training makes the model worse."""
    if len(seen.train) < 2:
        return None
    late = late_loss(seen.train)
    began = max([seen.train[0], *seen.val[:1][seen.val_step[:1] == 0]])
    few = len(seen.train) < FEW_ROWS  # then only what nobody could take for chance
    if not late > began + max(1.0 if few else 0.1, (0.2 if few else 0.02) * began):
        return None
    return finding(
        "rising",
        f"the training loss rose from {number(began)} to {number(late)} by step "
        f"{seen.last_step:,}, with a learning rate of up to {number(highest(seen.rate))}",
        (f"optimizer.lr={lower(about)}", "the learning rate is too high"),
        ("schedule.warmup=0.2", "or it rises too fast at the beginning"),
        ("precision=fp32", "if neither helps: numbers that a narrow type cannot hold"),
    )


def flat(seen: Curves, about: About) -> Finding | None:
    """The loss does not fall: not at all, or not below what counting tokens would give."""
    few = len(seen.train) < FEW_ROWS and len(seen.val) < FEW_VALIDATIONS
    if few or seen.last_step < FEW_STEPS or warming_up(seen, about):
        return None
    if rising(seen, about) or (len(seen.val) > 1 and overfits(seen)):
        return None
    return never_fell(seen, about) or only_frequencies(seen, about) or stopped_falling(seen, about)


def never_fell(seen: Curves, about: About) -> Finding | None:
    """Neither loss fell by a hundredth since the beginning."""
    quarter = max(2, len(seen.train) // 4)
    began, late = mean(seen.train[:quarter]), late_loss(seen.train)
    if fell(began, late) > FLAT or fell(seen.train[0], late) > 2 * FLAT:
        return None
    if len(seen.val) > 1 and fell(seen.val[0], lowest(seen.val)) > FLAT:
        return None
    return finding(
        "flat",
        f"the training loss was {number(began)} and is {number(late)} after {seen.last_step:,} "
        f"steps, with a learning rate of up to {number(highest(seen.rate))}",
        (f"optimizer.lr={higher(about)}", "the learning rate is too low to move the weights"),
        ("train.epochs=" + more_epochs(about), "or there were too few steps to see it fall"),
        ("data.duplicates=drop", "or nothing can be learned from the data: look at data.path"),
    )


def only_frequencies(seen: Curves, about: About) -> Finding | None:
    """The validation loss has come to rest at that of a model that only knows how frequent each
    token is."""
    counted = about.data.get("frequency_loss")
    if counted is None or not rests(seen, 2 * FLAT):
        return None
    best = lowest(seen.val)
    if min(best, seen.train_before[-1]) < SPARE * counted:  # of either side it knows more
        return None
    return finding(
        "flat",
        f"the validation loss came to rest at {number(best)}; the frequencies of the tokens alone "
        f"give {number(counted)}: the order of the words teaches the model nothing",
        ("data.path=FILE", "the text is shuffled, or a wrong column is read: look at the data"),
        (f"optimizer.lr={lower(about)}", "or the learning rate is too high to learn more"),
        (f"optimizer.lr={higher(about)}", "or too low"),
    )


def stopped_falling(seen: Curves, about: About) -> Finding | None:
    """For the second half of the validations, the loss has not fallen."""
    if not rests(seen, FLAT / 2):
        return None
    low, half = lowest(seen.val), len(seen.val) // 2
    at = int(np.argmax(seen.val <= low * (1 + FLAT / 2)))
    train = seen.train_before[max(at, 1)], seen.train_before[-1]
    learns = fell(*train) > FLAT  # but nothing that helps with other text
    stop = (f"train.epochs={epochs_until(seen, at)}", "the rest of the run brought nothing")
    return finding(
        "flat",
        f"since {place(seen, min(at, half))} of {seen.last_step:,} the validation loss has stayed "
        f"at {number(low)}; the training loss went from {number(train[0])} to {number(train[1])}",
        *([stop] if learns else []),
        (f"optimizer.lr={higher(about)}", "the learning rate is too low to go further"),
        (f"optimizer.lr={lower(about)}", "or too high to settle"),
        ("data.path=FILE", "or this is all the data teaches: look at it, or bring more"),
    )


def rests(seen: Curves, share: float) -> bool:
    """Say whether the second half of the validations brought less than `share` of the loss."""
    if len(seen.val) < 4 or not np.isfinite(seen.val).all():
        return False
    half = len(seen.val) // 2
    return fell(lowest(seen.val[:half]), lowest(seen.val[half:])) < share


def epochs_until(seen: Curves, index: int) -> str:
    """Return the whole epochs until a validation, one at least."""
    epoch = seen.val_epoch[index]
    return f"{max(1, math.ceil(epoch)) if math.isfinite(epoch) else 1}"


def overfitting(seen: Curves, about: About) -> Finding | None:
    """The validation loss rose from its best while the training loss went on falling."""
    if len(seen.val) < 2 or not overfits(seen):
        return None
    best, last = seen.best, len(seen.val) - 1
    said = (
        f"the validation loss rose from {number(seen.val[best])} at {place(seen, best)} to "
        f"{number(seen.val[last])} at {place(seen, last)}, while the training loss fell from "
        f"{number(reference(seen, best))} to {number(seen.train_before[last])}"
    )
    return finding(
        "overfitting",
        said,
        (
            f"train.epochs={epochs_until(seen, best)}",
            "the model has seen each example often enough by then",
        ),
        ("train.patience=2", "or stop by itself when validation no longer improves"),
        (f"model.dropout={0.1 if about.number('model.dropout', 0) < 0.1 else 0.2:g}", "or blur"),
        (f"optimizer.lr={lower(about, 3)}", "or learn each example less thoroughly"),
        ("data.path=FILE", "or bring more text: the surest cure"),
    )


def overfits(seen: Curves) -> bool:
    """Say whether the last validation is worse than the best, and training better than then."""
    best, last = seen.best, len(seen.val) - 1
    risen = seen.val[last] - seen.val[best] > RISE * seen.val[best]
    falling = seen.train_before[last] < 0.995 * reference(seen, best)
    return bool(best < last and risen and falling)


def reference(seen: Curves, best: int) -> float:
    """Return the training loss that belongs to validation `best`."""
    at_best = float(seen.train_before[best])
    if math.isfinite(at_best):
        return at_best
    return highest(np.append(seen.train[:1], seen.val[best]))  # before training: as it began


def underfitting(seen: Curves, about: About) -> Finding | None:
    """The run ended while its loss was still falling as fast as ever."""
    if not about.steps or seen.last_step < about.steps or len(seen.train) < 2 * FEW_ROWS:
        return None
    if len(seen.val) < 2 or seen.best < len(seen.val) - 1 or warming_up(seen, about):
        return None
    x, y = (seen.val_step, seen.val) if len(seen.val) >= 4 else (seen.step, smooth(seen.train))
    cut = 2 / 3 * seen.last_step
    total = y[0] - y[-1]
    late = float(np.interp(cut, x, y)) - y[-1]
    if not total > FLAT * y[0] or not late > 0.7 * share_of_rate(seen, cut) * total:
        return None
    return finding(
        "underfitting",
        f"the loss was still falling when the run ended: {number(y[0])} at first, "
        f"{number(float(np.interp(cut, x, y)))} after two thirds, {number(y[-1])} at the end",
        (f"optimizer.lr={higher(about)}", "a higher learning rate gets there sooner"),
        (f"train.epochs={more_epochs(about)}", "or train longer"),
        ("model=gpt2", "or start from weights that know the language, or a larger model"),
    )


def share_of_rate(seen: Curves, cut: float) -> float:
    """Return how much of the sum of all learning rates was spent after step `cut`."""
    steps = np.diff(seen.step, prepend=0.0)
    spent = np.nan_to_num(seen.rate) * steps
    return float(spent[seen.step > cut].sum() / (spent.sum() or 1.0))


def warming_up(seen: Curves, about: About) -> bool:
    """Say whether the learning rate has not been near its peak yet."""
    if not len(seen.rate):
        return True
    peak = about.number("optimizer.lr", 0.0)
    after = seen.rate[seen.step < 0.8 * seen.last_step]
    return not len(after) or bool(highest(after) < 0.5 * peak)


def smooth(values: Floats) -> Floats:
    """Return the running mean over an eighth of the curve."""
    width = max(1, len(values) // 8)
    padded = np.pad(np.nan_to_num(values, nan=mean(values)), width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, "valid")[: len(values)]


def late_loss(values: Floats) -> float:
    """Return the mean of the finite numbers in the last quarter; NaN where there is none."""
    return mean(values[-max(2, len(values) // 4) :])


def fell(before: float, after: float) -> float:
    """Return the fall of a loss as a share of it."""
    return float((before - after) / abs(before)) if before else 0.0


def place(seen: Curves, index: int) -> str:
    """Name a validation."""
    epoch = seen.val_epoch[index]
    where = f"epoch {epoch:.3g}, " if math.isfinite(epoch) else ""
    return f"{where}step {int(seen.val_step[index]):,}"


def lower(about: About, factor: float = 10) -> str:
    """Return a lower learning rate: the one that suits the model if that is lower."""
    now, suits = about.number("optimizer.lr", 5e-5), about.number("model.lr", math.inf)
    return f"{min(now / factor, suits) if suits < now / 2 else now / factor:.3g}"


def higher(about: About) -> str:
    """Return a higher learning rate: the one that suits the model if that is higher."""
    now, suits = about.number("optimizer.lr", 5e-5), about.number("model.lr", 0.0)
    return f"{suits if suits > 2 * now else 3 * now:.3g}"


def more_epochs(about: About) -> str:
    """Return twice the epochs of the run."""
    return f"{2 * about.number('train.epochs', 3):g}"
