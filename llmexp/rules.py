"""What each setting may be: one law a key, in words and as a test."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """One law: what a value may be, in words and as a test."""

    law: str
    holds: Callable[[Any], bool]

    def __or__(self, word: str | None) -> "Rule":
        """Allow one more value: a word, or None."""
        shown = "null" if word is None else word
        return Rule(
            f"{self.law}, or {shown}", lambda v: v == word or (v is not None and self.holds(v))
        )


def is_number(value: object) -> bool:
    """Say whether a value is a number; true and NaN are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _whole(low: int, high: int | None = None) -> Rule:
    law = f"a whole number from {low:,}" + ("" if high is None else f" to {high:,}")
    return Rule(
        law, lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= (high or v)
    )


def _number(law: str, holds: Callable[[float], bool]) -> Rule:
    return Rule(law, lambda v: is_number(v) and holds(v))


def _choice(*words: str) -> Rule:
    return Rule("one of " + ", ".join(words), lambda v: v in words)


POSITIVE = _number("a number above 0", lambda v: 0 < v < math.inf)
NOT_NEGATIVE = _number("a number from 0", lambda v: 0 <= v < math.inf)
FRACTION = _number("a number from 0 to below 1", lambda v: 0 <= v < 1)
SHARE = _number(
    "from 0 to below 1 (a fraction of the run) or a whole number of steps",
    lambda v: 0 <= v < 1 or (v > 0 and v % 1 == 0),
)
TEXT = Rule("a text", lambda v: isinstance(v, str) and bool(v.strip()))
FLAG = Rule("true or false", lambda v: isinstance(v, bool))
NAME = Rule(
    "a name of at most 80 letters, digits, '.', '_' and '-', not beginning with a dot",
    lambda v: bool(re.fullmatch(r"(?!\.)[A-Za-z0-9._-]{1,80}", str(v))),
)
TEXTS = Rule(
    "a list of texts, as in ['one','two']",
    lambda v: isinstance(v, list) and all(isinstance(t, str) and t for t in v),
)

SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 1, "n_positions": 8, "vocab_size": 1}  # at least
GPT2 = Rule(
    f"{', '.join(SIZES)} of a GPT-2: whole numbers, n_embd a multiple of n_head, "
    f"n_positions from {SIZES['n_positions']}",
    lambda v: (
        isinstance(v, Mapping)
        and all(_whole(least).holds(v.get(size)) for size, least in SIZES.items())
        and v["n_embd"] % v["n_head"] == 0
    ),
)

RULES: Mapping[str, Rule] = {
    "seed": _whole(0, 2**32 - 1),
    "resume": TEXT | None,
    "run.name": NAME | None,
    "train.epochs": POSITIVE,
    "train.max_steps": _whole(1) | None,
    "train.batch_size": _whole(1),
    "train.micro_batch_size": _whole(1) | "auto",
    "train.activation_checkpointing": FLAG | "auto",
    "train.cuda_graphs": FLAG | "auto",
    "train.allow": Rule(
        "a list of adamw8bit and bf16_parameters, as in [adamw8bit]",
        lambda v: isinstance(v, list) and {*map(str, v)} <= {"adamw8bit", "bf16_parameters"},
    ),
    "train.max_grad_norm": _number("a number above 0 (.inf: never clip)", lambda v: v > 0),
    "train.validate_every": POSITIVE,
    "train.validate_first": FLAG,
    "train.patience": _whole(1) | None,
    "train.log_every": _whole(1),
    "train.on_nonfinite": _choice("skip", "rollback", "stop"),
    "train.on_spike": _choice("report", "skip"),
    "checkpoint.every_steps": _whole(1) | None,
    "checkpoint.every_minutes": POSITIVE | None,
    "checkpoint.keep": _whole(1),
    "samples.prompts": TEXTS,
    "samples.max_new_tokens": _whole(0),
    "samples.temperature": NOT_NEGATIVE,
    "hw.name": TEXT,
    "hw.device": _choice("auto", "cpu", "cuda"),
    "hw.memory_gib": POSITIVE | None,
    "hw.budget_gib": POSITIVE | None,
    "hw.display": FLAG,
}

PART_RULES: Mapping[str, Rule] = {
    "model.name": TEXT,
    "model.weights": TEXT | None,
    "model.tokenizer": TEXT | None,
    "model.architecture": GPT2 | None,
    "model.dropout": FRACTION | None,
    "model.lr": POSITIVE,
    "data.max_length": _whole(2),
    "data.val_size": _number("a fraction above 0 and below 1", lambda v: 0 < v < 1),
    "data.name": NAME,
    **{
        f"data.columns.{name}": TEXT | None
        for name in (
            *("text", "prompt", "completion", "instruction", "input", "output"),
            *("messages", "conversations"),
        )
    },
    "optimizer.lr": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.eps": POSITIVE,
    "optimizer.momentum": FRACTION,
    "optimizer.betas": Rule(
        "two numbers from 0 to below 1",
        lambda v: isinstance(v, list) and len(v) == 2 and all(FRACTION.holds(b) for b in v),
    ),
    "schedule.warmup": SHARE,
    "schedule.decay": SHARE,
    "schedule.floor": _number("a number from 0 to 1", lambda v: 0 <= v <= 1),
}
