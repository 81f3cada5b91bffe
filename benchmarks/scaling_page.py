"""The page and the picture of benchmarks/scaling.py."""

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

COLUMNS = (
    *("ms of training by the clock", "CPU ms", "CPU ms with validations and checkpoints"),
    *("MiB resident", "files open"),
)
SECOND = 4  # looks at the long run
PARTS = 10  # of the long run; the first sets things up and is not judged
SLOWER, LARGER = 0.05, 0.01  # of the mean, from the second part to the last: less is flat


@dataclass
class Cost:
    """What the steps of one setting cost."""

    seconds: list[float]  # of each step
    tokens: int  # of a step
    parameters: int
    gflop: float  # of a step
    device: str

    @property
    def ms(self) -> float:
        """The median step in milliseconds."""
        return statistics.median(self.seconds) * 1000


@dataclass(frozen=True)
class Moment:
    """What a process is like when it has written the row of a step."""

    step: int
    trained: float  # seconds in training steps, as the run says
    cpu: float  # seconds, of everything
    resident: float  # MiB
    files: int  # open


class Part(NamedTuple):
    """A part of the long run."""

    steps: str
    trained: float  # ms of a step by the clock, in training alone: the median second
    cpu: float  # ms of CPU time of a step: the median second
    all_cpu: float  # the same on average, so with validations and checkpoints
    resident: float  # MiB, the median
    files: int  # open, at most


def parts_of(moments: Sequence[Moment]) -> list[Part]:
    """Cut the long run into parts."""
    steps = [moment.step for moment in moments]
    bounds = np.linspace(steps[0], steps[-1], PARTS + 1)
    ends = np.interp(bounds, steps, [moment.cpu for moment in moments])
    found = []
    for low, high, cpu in zip(bounds[:-1], bounds[1:], np.diff(ends), strict=True):
        inside = [m for m in moments if low <= m.step <= high]
        inside = inside if len(inside) > 1 else [moments[0], moments[-1]]
        found.append(
            Part(
                f"{low:,.0f} to {high:,.0f}",
                pace(inside, "trained"),
                pace(inside, "cpu"),
                1000 * float(cpu) / (high - low),
                statistics.median(m.resident for m in inside),
                max(m.files for m in inside),
            )
        )
    return found


def pace(moments: Sequence[Moment], clock: str) -> float:
    """Return ms of a step in the median second: nearly all of them hold no validation."""
    pairs = list(zip(moments, moments[SECOND:], strict=False))[::SECOND]
    return statistics.median(
        1000 * (getattr(other, clock) - getattr(one, clock)) / max(1, other.step - one.step)
        for one, other in pairs or [(moments[0], moments[-1])]
    )


def verdict(name: str, unit: str, values: Sequence[float], limit: float) -> tuple[str, ...]:
    """Say how much the line nearest to some values rises from the first of them to the last."""
    (rise, _), covariance = np.polyfit(np.arange(len(values)), values, 1, cov=True)
    span, mean = len(values) - 1, statistics.fmean(values)
    growth, error = float(rise) * span, float(np.sqrt(covariance[0, 0])) * span
    told = "flat" if growth <= limit * mean else "in the noise"
    told = "**grows**" if growth - 2 * error > limit * mean else told
    grown = f"{growth:+.2f} {unit} (standard error {error:.2f})"
    return name, f"{mean:,.1f} {unit}", grown, f"{growth / max(mean, 1e-9):+.1%}", told


def heading(device: str, load: float) -> str:
    """Say when, where and with what."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(
        words, cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    cpus = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in text]
    processor = cpus[0].partition(": ")[2] if cpus else platform.machine()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy"))
    return (
        f"# python benchmarks/scaling.py\n\n{date.today()}, {device}; {os.cpu_count()} CPU cores "
        f"({processor}), OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}, load {load:.1f} before "
        f"the start from other work.\nllmexp at {commit}, Python {platform.python_version()}, "
        f"{packages}. Times are {'CPU time' if device == 'cpu' else 'by the clock'}."
    )


def table(*rows: Sequence[object]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(["", lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def costs(first: str, found: dict[str, Cost]) -> str:
    """Return the table of some settings."""
    rows = [
        (
            name,
            f"{cost.parameters / 1e6:.1f} M",
            f"{cost.ms:,.1f}",
            f"{min(cost.seconds) * 1000:,.1f} to {max(cost.seconds) * 1000:,.1f}",
            f"{cost.ms / cost.tokens * 1000:,.0f}",
            f"{cost.gflop / cost.ms * 1000:,.0f}",
        )
        for name, cost in found.items()
    ]
    head = (first, "parameters", "ms per step", "all steps", "us per token", "GFLOP/s")
    return table(head, *rows)


def straight(found: dict[str, Cost]) -> tuple[float, float]:
    """Return ms of a step and ms of each of its tokens: the line nearest by ratio."""
    tokens, ms = (np.array([getattr(c, name) for c in found.values()]) for name in ("tokens", "ms"))
    (fixed, each), *_ = np.linalg.lstsq(
        np.stack([1 / ms, tokens / ms], axis=1), np.ones(len(ms)), rcond=None
    )
    return float(fixed), float(each)


def page(command: str, load: float, found: "Found") -> str:
    """Return the whole result as Markdown."""
    device = next(iter(found.tokens.values())).device
    fixed, each = straight(found.tokens)
    rates = [cost.gflop / cost.ms * 1000 for cost in found.sizes.values()]
    work = [cost.gflop for cost in found.sizes.values()]
    parts = parts_of(found.moments)
    _, trained, cpu, _, resident, files = zip(*parts, strict=True)
    judged = (
        verdict("training step, by the clock", "ms", trained[1:], SLOWER),
        verdict("step, CPU time", "ms", cpu[1:], SLOWER),
        verdict("resident memory", "MiB", resident[1:], LARGER),
        verdict("open files", "", files[1:], LARGER),
    )
    return "\n".join(
        [
            heading(device, load),
            "\n## Tokens per step, gpt2-nano",
            costs("tokens per step", found.tokens),
            f"\nThe line nearest to them: {fixed:.1f} ms a step, {each * 1000:.0f} us a token.",
            "\n## Size of the model, 512 tokens per step",
            costs("model (layers x width)", found.sizes),
            f"\nThe work of a step grows {max(work) / min(work):,.0f}-fold; what is done of it in "
            f"a second lies between {min(rates):,.0f} and {max(rates):,.0f} GFLOP/s.",
            f"\n## Number of steps\n\n`{command}`",
            table(
                ("steps", *COLUMNS),
                *((n, *(f"{ms:.2f}" for ms in times), f"{r:.1f}", f) for n, *times, r, f in parts),
            ),
            f"\nLast part against the first: {trained[-1] / trained[0]:.2f} x the time of training "
            f"by the clock, {cpu[-1] / cpu[0]:.2f} x the CPU time. From the second to the last:",
            table(("", "mean", "growth", "of the mean", "verdict"), *judged),
            "\n![cost against tokens, size and number of steps](scaling.png)",
        ]
    )


def draw(path: Path, found: "Found") -> None:
    """Draw cost against tokens, size and number of steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    pyplot.rcParams["font.size"] = 12
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    draw_tokens(axes[0, 0], found.tokens)
    draw_sizes(axes[0, 1], found.sizes)
    parts = parts_of(found.moments)
    middles = (np.arange(len(parts)) + 0.5) * found.moments[-1].step / len(parts)
    for column, name in (("trained", "by the clock"), ("cpu", "CPU time")):
        axes[1, 0].plot(middles, [getattr(part, column) for part in parts], "o-", label=name)
    axes[1, 0].set(title="speed of a long run", xlabel="optimizer step", ylabel="ms per step")
    axes[1, 0].legend()
    steps, resident = zip(*((m.step, m.resident) for m in found.moments), strict=True)
    axes[1, 1].plot(steps, resident)
    axes[1, 1].set(title="memory of a long run", xlabel="optimizer step", ylabel="MiB resident")
    for axis in axes[1]:
        axis.set_ylim(0, axis.get_ylim()[1] * 1.15)
    for axis in axes[0]:
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            side.set_major_formatter("{x:,.0f}")
            side.set_minor_formatter("")
    for axis in axes.flat:
        axis.grid(alpha=0.3, which="both")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def draw_tokens(axis: Any, found: dict[str, Cost]) -> None:
    """Draw the step against its tokens."""
    fixed, each = straight(found)
    tokens = np.array([cost.tokens for cost in found.values()])
    told = f"{fixed:.1f} ms + {each * 1000:.0f} us per token"
    axis.plot(tokens, fixed + each * tokens, color="tab:gray", label=told)
    axis.plot(tokens, [cost.ms for cost in found.values()], "o", label="gpt2-nano")
    axis.set(xscale="log", yscale="log", xlabel="tokens per step", ylabel="ms per step")
    axis.set(title="tokens per step")
    axis.legend()


def draw_sizes(axis: Any, found: dict[str, Cost]) -> None:
    """Draw the step against its work."""
    work, ms = ([getattr(c, name) for c in found.values()] for name in ("gflop", "ms"))
    rate = statistics.median(w / m for w, m in zip(work, ms, strict=True))
    ends = np.array([min(work), max(work)])
    axis.margins(x=0.16)
    axis.plot(ends, ends / rate, color="tab:gray", label=f"{rate * 1000:.0f} GFLOP/s")
    axis.plot(work, ms, "o")
    for name, x, y in zip(found, work, ms, strict=True):
        axis.annotate(name, (x, y), (7, -12), textcoords="offset points", fontsize=10)
    axis.set(xscale="log", yscale="log", xlabel="GFLOP per step", ylabel="ms per step")
    axis.set(title="size of the model, 512 tokens per step")
    axis.legend()


@dataclass(frozen=True)
class Found:
    """All that was measured."""

    tokens: dict[str, Cost]  # by tokens per step
    sizes: dict[str, Cost]  # by model
    moments: list[Moment]  # of the long run
