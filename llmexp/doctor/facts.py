"""What the doctor knows of the data: the numbers of the data report, and two that follow from
them."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from llmexp.data import Corpus
    from llmexp.data.examples import Examples, Ints

COUNTED = 4096  # examples of each side, for the frequencies


def facts(corpus: "Corpus", *, packs: bool) -> dict[str, Any]:
    """Return what is known of the data; `packs`: short examples share rows."""
    padding = corpus.report.padding
    return corpus.report.as_dict() | {
        "padding": padding.packed if packs else padding.to_longest,
        "frequency_loss": frequency_loss(corpus.train, corpus.validation),
    }


def frequency_loss(train: "Examples", validation: "Examples") -> float:
    """Return the validation loss, nats per label token, of a model that knows no more than how
    frequent each token is in the training data.

    Counts are raised by one, so that no token is impossible (Laplace's rule).
    """
    known, asked = labels(train), labels(validation)
    if not len(known) or not len(asked):
        return math.inf
    counts = np.bincount(known, minlength=int(max(known.max(), asked.max())) + 1) + 1.0
    return float(-np.log(counts / counts.sum())[asked].mean())


def labels(examples: "Examples") -> "Ints":
    """Return the label tokens of examples spread over a side."""
    step = -(-len(examples) // COUNTED)
    ids, mask, lengths = examples.gather(np.arange(0, len(examples), step))
    mask[np.cumsum(lengths) - lengths] = False  # the first token of an example is no label
    return ids[mask]
