"""The machine's own limit: the matrix products of one optimizer step, and nothing else.

    python benchmarks/peer_limit.py REQUEST.json

Prints the seconds that they take, each at its own shape and in this number format, on warm
operands, the fastest of several tries.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

SECONDS = 0.2  # for each product, and at least two tries
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def products(
    layers: int, width: int, vocabulary: int, *, tokens: int, labels: int
) -> Iterator[tuple[float, int, int, int]]:
    """Yield (how often, m, k, n) of forward and backward, all but attention.

    Each layer [tokens, in] x [in, out] comes three times: forward, for its input, for its weight.
    """
    for rows, inner, outer, often in (
        (tokens, width, 3 * width, layers),
        (tokens, width, width, layers),
        (tokens, width, 4 * width, layers),
        (tokens, 4 * width, width, layers),
        (labels, width, vocabulary, 1),
    ):
        yield often, rows, inner, outer
        yield often, rows, outer, inner
        yield often, inner, rows, outer


def fastest(product: Callable[[], torch.Tensor]) -> float:
    """Return the seconds of the fastest try."""
    product()
    best, spent, tries = float("inf"), 0.0, 0
    while spent < SECONDS or tries < 2:
        started = now()
        product()
        seconds = now() - started
        best, spent, tries = min(best, seconds), spent + seconds, tries + 1
    return best


def now() -> float:
    """Return the time, after all that was asked for is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def multiplying(m: int, k: int, n: int, dtype: torch.dtype) -> float:
    """Return the seconds of one product [m, k] x [k, n]."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.randn(m, k, device=device).to(dtype)
    right = torch.randn(k, n, device=device).to(dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)
    return fastest(lambda: torch.mm(left, right, out=out))


def attending(examples: int, length: int, heads: int, width: int, dtype: torch.dtype) -> float:
    """Return the seconds of one layer's attention products, forward and backward.

    Six of them: two forward, four backward. Half counts: the other half is masked.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    query = torch.randn(examples * heads, length, width // heads, device=device).to(dtype)
    key = torch.randn_like(query).transpose(1, 2)
    scores = torch.bmm(query, key)
    back = torch.empty_like(query)
    to_scores = fastest(lambda: torch.bmm(query, key, out=scores))  # scores; their gradient
    from_scores = fastest(lambda: torch.bmm(scores, query, out=back))  # values; three gradients
    return (2 * to_scores + 4 * from_scores) / 2


def main() -> None:
    """Measure what the request describes."""
    request = json.loads(Path(sys.argv[1]).read_text())
    layers, width, heads, _, vocabulary = request["shape"]
    dtype = DTYPES[request["precision"]]
    lengths, steps = request["lengths"], request["steps"]
    tokens = round(sum(length - 1 for length in lengths) / steps)
    square = sum((length - 1) ** 2 for length in lengths) / len(lengths)
    seconds = sum(
        often * multiplying(m, k, n, dtype)
        for often, m, k, n in products(layers, width, vocabulary, tokens=tokens, labels=tokens)
    )
    examples = round(len(lengths) / steps)
    seconds += layers * attending(examples, max(1, round(square**0.5)), heads, width, dtype)
    print(json.dumps({"seconds": seconds, "tokens": tokens}))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
