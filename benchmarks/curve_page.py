"""The page and the picture of benchmarks/curve.py."""

import math
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

Curve = dict[int, float]  # step -> nats per token


@dataclass(frozen=True)
class Pair:
    """The validation losses of two runs that should be the same."""

    seed: int
    ours: Curve
    theirs: Curve

    @property
    def difference(self) -> float:
        """Ours less theirs at the end."""
        last = max(self.ours)
        return self.ours[last] - self.theirs[last]

    @property
    def largest(self) -> float:
        """The largest difference on the way."""
        return max(abs(loss - self.theirs[step]) for step, loss in self.ours.items())


@dataclass(frozen=True)
class Noise:
    """The final losses of both, and what chance makes of them."""

    pairs: Sequence[Pair]

    def finals(self, whose: str) -> list[float]:
        """Return the last loss of each seed, `whose` is ours or theirs."""
        curves: list[Curve] = [getattr(pair, whose) for pair in self.pairs]
        return [curve[max(curve)] for curve in curves]

    @property
    def difference(self) -> float:
        """Our mean less theirs."""
        return statistics.fmean(self.finals("ours")) - statistics.fmean(self.finals("theirs"))

    def spread(self, whose: str) -> float:
        """The standard deviation over the seeds."""
        finals = self.finals(whose)
        return statistics.stdev(finals) if len(finals) > 1 else math.nan

    @property
    def error(self) -> float:
        """The standard error of the difference of the two means."""
        variances = [self.spread(whose) ** 2 for whose in ("ours", "theirs")]
        return math.sqrt(sum(variances) / len(self.pairs))

    def verdict(self) -> str:
        """Say whether the difference is within the noise of the seeds."""
        if math.isnan(self.error):
            return "One seed says nothing of chance."
        is_within = abs(self.difference) <= 2 * self.error
        return (
            f"The means differ by {self.difference:+.4f} nats (llmexp less Trainer). From seed to "
            f"seed llmexp's\nlast loss varies by {self.spread('ours'):.4f} and Trainer's by "
            f"{self.spread('theirs'):.4f} (standard deviation), so two means of {len(self.pairs)} "
            f"runs differ by\n{self.error:.4f} by chance alone (standard error); twice that is "
            f"taken for noise. **{'Within' if is_within else 'Not within'} seed noise.**"
        )


def page(told: str, pairs: Sequence[Pair], exact: Pair) -> str:
    """Return the whole result as Markdown."""
    steps = list(exact.ours)
    gaps = [exact.ours[step] - exact.theirs[step] for step in steps]
    return "\n".join(
        [
            f"# python benchmarks/curve.py\n\n{heading()}\n\n{told}",
            *(by_seed(pairs) if pairs else []),
            f"\nWithout dropout (seed {exact.seed}) only rounding is left to differ, and training "
            f"makes it larger: the two curves are\n{abs(gaps[1]):.1e} nats apart after {steps[1]} "
            f"steps, {exact.largest:.1e} at most, and {abs(gaps[-1]):.1e} at the end.",
            "\n![validation loss of both against the step](curve.png)",
        ]
    )


def by_seed(pairs: Sequence[Pair]) -> list[str]:
    """Return what the runs with dropout say."""
    noise = Noise(pairs)
    rows = []
    for pair in pairs:
        ends = [f"{curve[max(curve)]:.4f}" for curve in (pair.ours, pair.theirs)]
        rows.append((pair.seed, *ends, f"{pair.difference:+.4f}", f"{pair.largest:.4f}"))
    means = [f"{statistics.fmean(noise.finals(whose)):.4f}" for whose in ("ours", "theirs")]
    steps = list(pairs[0].ours)
    shown = steps[:: max(1, len(steps) // 6)]
    curves = [
        (name, *(f"{mean(pairs, whose)[step]:.3f}" for step in shown))
        for name, whose in (("llmexp", "ours"), ("Trainer", "theirs"))
    ]
    return [
        table(
            ("seed", "llmexp, at the end", "Trainer", "difference", "largest on the way"),
            *rows,
            ("mean", *means, f"{noise.difference:+.4f}", ""),
        ),
        f"\n{noise.verdict()}",
        table(("mean loss after step", *(f"{step:,}" for step in shown)), *curves),
    ]


def heading() -> str:
    """Say when, where and with what."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True)
    names = ("torch", "transformers", "accelerate")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"{date.today()}, {os.cpu_count()} CPU cores, {platform.machine()}. llmexp at "
        f"{commit.stdout.strip()}, Python {platform.python_version()}, {packages}."
    )


def table(*rows: Sequence[object]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(["", lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def mean(pairs: Sequence[Pair], whose: str) -> Curve:
    """Return the mean curve over the seeds."""
    curves: list[Curve] = [getattr(pair, whose) for pair in pairs]
    return {step: statistics.fmean(curve[step] for curve in curves) for step in curves[0]}


def draw(path: Path, pairs: Sequence[Pair], exact: Pair) -> None:
    """Draw both sets of curves, and what is between them."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams["font.size"] = 12
    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(8, 7), layout="constrained", sharex=True, height_ratios=(2, 1)
    )
    looks = (
        ("llmexp", "ours", "tab:blue", "-"),
        ("Hugging Face Trainer", "theirs", "tab:red", "--"),
    )
    for name, whose, colour, style in looks:
        for pair in pairs:
            curve: Curve = getattr(pair, whose)
            label = f"{name}, {len(pairs)} seeds" if pair is pairs[0] else None
            top.plot(list(curve), list(curve.values()), style, color=colour, lw=1.6, label=label)
    for pair in (*pairs, exact):
        gaps = [loss - pair.theirs[step] for step, loss in pair.ours.items()]
        label = "no dropout" if pair is exact else f"seed {pair.seed}"
        colour = "black" if pair is exact else None
        bottom.plot(list(pair.ours), gaps, ".-", color=colour, label=label)
    top.set(ylabel="validation loss (nats per token)", title="the same training by both")
    bottom.set(xlabel="optimizer step", ylabel="llmexp less Trainer (nats)")
    for axis in (top, bottom):
        axis.legend(ncols=1 if axis is top else 2)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
