"""The peak of live bytes as a closed form in (layers, tokens), from a few tiny traces.

In each phase of a step (forward, loss, its backward, backward of the last and of the first block,
embedding, optimizer) the live bytes are c0 + c1 * layers, exactly, because the blocks are alike;
and from KNOTS[-2] tokens on each c is a straight line in the tokens. The peak is the largest phase.
Below KNOTS[-2] tokens the chunks of the loss are still growing; there the next larger knot is
taken, which is more than needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmexp.memory.measure import Request, Result, measure
from llmexp.memory.setting import Setting, layer_count

LAYERS = (2, 3)
KNOTS = (512, 1024, 2048, 16384)  # tokens of a micro-batch


@dataclass(frozen=True)
class Form:
    """`phases[i][name]` are (c0, c1) in bytes at `tokens[i]` tokens."""

    tokens: tuple[int, ...]
    phases: tuple[dict[str, tuple[float, float]], ...]

    def peak(self, layers: int, tokens: int) -> float:
        """Return the peak of live bytes of a step with `tokens` tokens per micro-batch."""
        if tokens <= self.tokens[-2]:
            knot = min(i for i, known in enumerate(self.tokens) if tokens <= known)
            return max(c0 + c1 * layers for c0, c1 in self.phases[knot].values())
        (low, high), (below, above) = self.tokens[-2:], self.phases[-2:]
        share = (tokens - low) / (high - low)
        return max(
            _line(below[name], layers) * (1 - share) + _line(above[name], layers) * share
            for name in below
        )


def forms(requests: Iterable[Request]) -> dict[str, Form]:
    """Return the closed form of every request's setting, by its key with the passes.

    What has to be traced is traced in one go. Raises llmexp.memory.measure.Unmeasurable.
    """
    kinds = {r.setting.key(r.passes): (r.setting, r.passes) for r in requests}
    tiny = {key: traces(setting, passes) for key, (setting, passes) in kinds.items()}
    results = iter(measure([request for group in tiny.values() for request in group]))
    return {
        key: _form(setting, [next(results) for _ in tiny[key]])
        for key, (setting, _) in kinds.items()
    }


def traces(setting: Setting, passes: int) -> list[Request]:
    """Return the tiny traces that a form needs."""
    layers = LAYERS if layer_count(setting.config) is not None else (None,)
    return [
        Request(setting if count is None else setting.at(count), rows, passes)
        for rows in _rows(setting.length)
        for count in layers
    ]


def _form(setting: Setting, results: Sequence[Result]) -> Form:
    rows = _rows(setting.length)
    if layer_count(setting.config) is None:
        phases = [{n: (float(b), 0.0) for n, b in r["peaks"].items()} for r in results]
    else:
        pairs = list(zip(results[::2], results[1::2], strict=True))
        phases = [_coefficients(low, high) for low, high in pairs]
    return Form(tuple(count * setting.length for count in rows), tuple(phases))


def _coefficients(low: Result, high: Result) -> dict[str, tuple[float, float]]:
    """Return (c0, c1) of every phase that both have: three layers have a middle one, two do not."""
    few, many = LAYERS
    pairs = {n: (low["peaks"][n], high["peaks"][n]) for n in low["peaks"] if n in high["peaks"]}
    slopes = {name: (b - a) / (many - few) for name, (a, b) in pairs.items()}
    return {name: (a - slopes[name] * few, slopes[name]) for name, (a, _) in pairs.items()}


def _line(coefficients: tuple[float, float], layers: int) -> float:
    return coefficients[0] + coefficients[1] * layers


def _rows(length: int) -> list[int]:
    """Return the rows of `length` tokens whose tokens reach each knot; two at least."""
    rows = sorted({math.ceil(knot / length) for knot in KNOTS})
    return rows if len(rows) > 1 else [1, 2]
