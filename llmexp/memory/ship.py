"""python -m llmexp.memory.ship: plan every shipped model on every preset, and keep the numbers.

Writes llmexp/memory/measured.json, all that these plans asked for. Run it again when the engine,
the loss or torch change, or what a step allocates with a new transformers (tests/memory says when):
half an hour on two cores. Stopped, it continues: the user's cache has what was measured. With
--missing it keeps the numbers that ship already, if they hold, and measures only what they lack:
half a minute that adds a new version of transformers to those that need no probing any more.
`python -m llmexp.plan --presets` prints the table from it.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from llmexp import durable
from llmexp.errors import RequestError
from llmexp.memory import measure, planner
from llmexp.memory.budget import GIB, REPORTED
from llmexp.memory.nearest import FAMILY
from llmexp.plan import composed

GUIDE = (  # what a common guide says of 512 tokens with AMP
    ("gpt2", "6gb", "train.batch_size=2"),
    ("gpt2", "8gb", "train.batch_size=4"),
    ("gpt2-medium", "12gb", "train.batch_size=8"),
    ("gpt2-large", "24gb", "train.batch_size=16"),
)
BY_HAND = (  # what a person may insist on, and is refused
    ("gpt2", "6gb", "train.micro_batch_size=16", "train.activation_checkpointing=false"),
    ("gpt2-medium", "8gb", "train.activation_checkpointing=false"),
)
ALLOWED = (  # what fits where a person lets the numbers change
    ("gpt2-medium", "6gb", "train.allow=[adamw8bit]"),
    ("gpt2-large", "12gb", "train.allow=[adamw8bit]"),
    ("gpt2-large", "8gb", "train.allow=[adamw8bit,bf16_parameters]"),
    ("gpt2-xl", "12gb", "train.allow=[adamw8bit,bf16_parameters]"),
    ("gpt2-xl", "24gb", "train.allow=[adamw8bit]"),
)
OLD_CARDS = ("gpt2-nano", "distilgpt2", "gpt2")
HEAD = (
    *("model", "hw", "micro-batch x accumulation", "checkpointing", "predicted peak", "budget"),
    "shown by",
)
H200 = "measured on NVIDIA H200, 2026-11-27"
MEASURED = {  # plans that benchmarks/memory.py held against a card: benchmarks/results/memory.md
    ("gpt2", "6gb", "8 x 2"): H200,
    ("gpt2", "8gb", "16 x 1"): H200,
    ("gpt2-medium", "8gb", "16 x 1"): H200,
    ("gpt2-medium", "12gb", "6 x 3"): H200,
}


def main() -> None:
    """Measure what is missing, write the file, print the table."""
    if "--missing" not in sys.argv[1:]:
        measure.SHIPPED.unlink(missing_ok=True)
    versions: dict[str, Any] = dict(measure.versions())
    versions["transformers"] = sorted({*measure.shipped_for(), versions["transformers"]})
    measure.measure(measure.probes())
    for line in table():
        print(line, flush=True)
    for model in OLD_CARDS:  # a GTX 16xx computes in fp32
        row(model, "6gb", "precision=fp32")
    for wanted in (*GUIDE, *BY_HAND, *ALLOWED):
        row(*wanted)
    results = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(result, sort_keys=True, separators=(',', ':'))}"
        for key, result in sorted(measure.seen.items())
    )
    text = f'{{"versions": {json.dumps(versions)}, "results": {{\n{results}\n}}}}\n'
    durable.write_text(measure.SHIPPED, text)


def table() -> Iterator[str]:
    """Yield the plans of every shipped model on every preset, as markdown."""
    yield "| " + " | ".join(HEAD) + " |"
    yield "|" + "---|" * len(HEAD)
    for model in reversed(FAMILY):
        for hw in REPORTED:
            yield "| " + " | ".join(row(model, hw)) + " |"
    yield ""
    torch = f"torch {measure.versions()['torch']}"
    yield f"Simulation ({torch}): the traced step of the engine, replayed under each cap."
    yield "Measured: 20 steps under the same cap, and right to 0.21 % of what was allocated."


def row(model: str, hw: str, *overrides: str) -> tuple[str, ...]:
    """Return the plan of a model on a preset, or what to do instead."""
    settings = composed([f"model={model}", f"hw={hw}", *overrides])
    try:
        plan = planner.plan(settings)
    except RequestError as refusal:
        commands = [line for line in str(refusal).splitlines() if "python -m" in line]
        changes = [shlex.split(line, comments=True)[-1] for line in commands]
        return model, hw, "does not fit; " + ", ".join(f"`{c}`" for c in changes), "", "", "", ""
    assert plan.prediction is not None and plan.budget is not None
    cut = f"{plan.micro_batch_size} x {plan.accumulation}"
    return (
        model,
        hw,
        cut,
        "yes" if plan.activation_checkpointing else "no",
        f"{plan.prediction.total / GIB:.1f} GiB",
        f"{plan.budget.gib:.1f} GiB",
        MEASURED.get((model, hw, cut), "simulation"),
    )


if __name__ == "__main__":
    main()
