"""What the steps say: numbers that are not finite, gradients, the learning rate."""

import numpy as np

from llmexp.console.words import number
from llmexp.doctor.curves import About, Curves, middle
from llmexp.doctor.findings import Finding, finding
from llmexp.doctor.learning import FEW_ROWS, lower

SPIKES = (5, 0.01)  # at least so many, and such a share of the steps
OVERFLOWS = (10, 0.02)  # likewise; fp16 finds its loss scale by a few
CLIPPED = (5.0, 0.95)  # the norm is so many times the limit, in such a share of the rows
DEAD = 1e-6  # gradient norm; that of a model at work is 0.01 to 10
EXPLODED = 100.0  # times the gradient norm of the first half


def not_finite(seen: Curves, about: About) -> Finding | None:
    """Some steps updated nothing; in fp16, more than the loss scale explains."""
    if about.get("precision.name") == "fp16":
        return scaler(seen, about)
    if not seen.nonfinite:
        return None
    return finding(
        "non-finite",
        f"{seen.nonfinite:,} of {seen.last_step:,} steps had a loss or a gradient that is not "
        "finite and updated nothing",
        (f"optimizer.lr={lower(about)}", "the learning rate is too high"),
        ("precision=fp32", "or a narrow type overflows"),
        ("train.on_nonfinite=stop", "or some examples do it: the first such step names them"),
    )


def scaler(seen: Curves, about: About) -> Finding | None:
    """The loss scale of fp16 keeps overflowing."""
    few, share = OVERFLOWS
    if seen.nonfinite < max(few, share * seen.last_step):
        return None
    return finding(
        "scaler collapse",
        f"{seen.nonfinite:,} of {seen.last_step:,} steps overflowed fp16, whose largest number is "
        "65,504, and updated nothing",
        ("precision=bf16", "numbers as wide as those of fp32, on cards from Ampere on"),
        ("precision=fp32", "on older cards"),
        (f"optimizer.lr={lower(about)}", "or the model diverges: lower the learning rate"),
    )


def spikes(seen: Curves, about: About) -> Finding | None:
    """Steps stand out from those before them again and again."""
    few, share = SPIKES
    if seen.spikes < max(few, share * seen.last_step):
        return None
    return finding(
        "spikes",
        f"{seen.spikes:,} of {seen.last_step:,} steps lie 6 standard deviations above those before",
        (f"optimizer.lr={lower(about, 3)}", "the learning rate is near what it can bear"),
        ("train.on_spike=skip", "or some batches are unlike the rest: timing.jsonl names them"),
        (f"train.batch_size={2 * int(about.number('train.batch_size', 16))}", "or steps are small"),
    )


def clipping(seen: Curves, about: About) -> Finding | None:
    """Every gradient is cut to a small part of itself."""
    limit = about.number("train.max_grad_norm", float("inf"))
    late = seen.norm[len(seen.norm) // 2 :]
    times, share = CLIPPED
    if len(late) < FEW_ROWS or not middle(late) > times * limit:
        return None
    cut = float(np.mean(late > limit))
    if cut < share:
        return None
    return finding(
        "clipping",
        f"{cut:.0%} of the last {len(late)} gradients on record were clipped to {limit:g}; their "
        f"median norm is {number(middle(late))}",
        (f"train.max_grad_norm={number(middle(late))}", "clip only what stands out"),
        (f"optimizer.lr={lower(about, 3)}", "or the learning rate keeps the weights jumping"),
        (f"train.batch_size={2 * int(about.number('train.batch_size', 16))}", "or steps are small"),
    )


def gradients(seen: Curves, about: About) -> Finding | None:
    """Gradients have died out, or exploded."""
    if len(seen.norm) < FEW_ROWS:
        return None
    half = len(seen.norm) // 2
    early, late = middle(seen.norm[:half]), middle(seen.norm[half:])
    if late < DEAD:
        return finding(
            "dead gradients",
            f"the gradient norm is {number(late)} (it was {number(early)})",
            (f"optimizer.lr={lower(about)}", "too high a learning rate drove the weights astray"),
            ("precision=fp32", "or small gradients underflow"),
            ("data.loss_on=all", "or hardly a token is trained on"),
        )
    if late > max(EXPLODED * early, 10.0):
        return finding(
            "exploding gradients",
            f"the median gradient norm rose from {number(early)} to {number(late)}",
            (f"optimizer.lr={lower(about)}", "the learning rate is too high"),
            ("train.max_grad_norm=1.0", "or gradients are not clipped"),
            ("schedule.warmup=0.2", "or it rises too fast at the beginning"),
        )
    return None


def warmup(seen: Curves, about: About) -> Finding | None:
    """The learning rate spent more than half of the run rising."""
    if len(seen.rate) < FEW_ROWS or seen.last_step < about.steps or not about.steps:
        return None
    peak = int(np.argmax(np.nan_to_num(seen.rate, nan=-1.0)))
    if seen.step[peak] <= 0.5 * seen.last_step:
        return None
    still = "was still rising at the end" if peak == len(seen.rate) - 1 else "rose"
    return finding(
        "warm-up",
        f"the learning rate {still}, up to step {int(seen.step[peak]):,} of {seen.last_step:,}, to "
        f"{number(seen.rate[peak])}",
        ("schedule.warmup=0.1", "a tenth of the run is enough"),
        (f"train.epochs={2 * about.number('train.epochs', 3):g}", "or train longer"),
    )
