"""The loss of every validation example, kept beside the run: what a paired comparison rests on.

A pure function of the model and the data, so a resumed run writes the same bytes.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmexp import durable

if TYPE_CHECKING:
    from torch import Tensor

    from llmexp.data.examples import Examples

log = logging.getLogger("llmexp")
FILE = "validation_losses.safetensors"  # in a run folder
PAGE = 4096  # examples read at once

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Validation:
    """What a model made of the E examples of the validation set, in their order."""

    nats: "Tensor"  # [E] float64, summed over the label tokens of each
    tokens: "Tensor"  # [E] float64, its label tokens

    @property
    def loss(self) -> float:
        """The mean over all label tokens, in nats per token."""
        return float(self.nats.sum() / self.tokens.sum())


def per_example(
    losses: Sequence["Tensor"], owners: Sequence["Tensor"], indices: Sequence[int]
) -> "Tensor":
    """Return the nats and the label tokens of each of a batch's examples, [2, len(indices)].

    `losses` and `owners` hold the loss of each label token and the number of its example, in
    pieces [N]; `indices` are those numbers, one after the other. On the CPU, where sums have an
    order.
    """
    import torch

    each = torch.cat(list(losses)).cpu().double()
    place = torch.cat(list(owners)).cpu() - indices[0]
    found = torch.zeros(2, len(indices), dtype=torch.float64)
    return found.index_add_(1, place, torch.stack([each, torch.ones_like(each)]))


@dataclass(frozen=True)
class Losses:
    """What a run made of each of its E validation examples."""

    keys: Ints  # [E] the same for the same tokens and labels, in whatever run
    tokens: Ints  # [E] label tokens
    best: Floats  # [E] nats, summed over them: of the best validation
    last: Floats  # [E] likewise, of the last validation

    @property
    def loss(self) -> float:
        """The loss of the best validation in nats per label token."""
        return float(self.best.sum(dtype=np.float64) / self.tokens.sum())


def keys_of(examples: "Examples") -> Ints:
    """Return a number per example that names its tokens and which of them are labels, [E]."""
    found = []
    for first in range(0, len(examples), PAGE):
        numbers = np.arange(first, min(first + PAGE, len(examples)))
        ids, labels, lengths = examples.gather(numbers)
        ends = np.cumsum(lengths)
        for start, end in zip(ends - lengths, ends, strict=True):
            text = ids[start:end].astype("<i4").tobytes() + labels[start:end].tobytes()
            found.append(hashlib.blake2b(text, digest_size=8).digest())
    return np.frombuffer(b"".join(found), "<i8").astype(np.int64)


def keep(folder: Path, keys: Ints, found: Validation, *, is_best: bool) -> None:
    """Write what a validation found beside the best of those before it. Raises OSError.

    Where those are not known, nothing is written until the next best one.
    """
    nats, tokens = found.nats.float().numpy(), found.tokens.long().numpy()
    before = None if is_best else read(folder)
    try:
        if is_best:
            write(folder, Losses(keys, tokens, nats, nats))
        elif before is not None and len(before.best) == len(nats):
            write(folder, Losses(keys, tokens, before.best, nats))
    except OSError:
        durable.discard(folder / FILE)  # it would be taken for that of this validation
        raise


def write(folder: Path, losses: Losses) -> None:
    """Write the losses into a run folder. Raises OSError."""
    from safetensors.numpy import save

    arrays = {
        "keys": losses.keys,
        "label_tokens": losses.tokens.astype(np.int32),
        "best": losses.best.astype(np.float32),
        "last": losses.last.astype(np.float32),
    }
    durable.write_bytes(folder / FILE, save(arrays))


def read(folder: Path) -> Losses | None:
    """Return the losses that a run kept, None where it kept none that can be read."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load((folder / FILE).read_bytes())
        tokens = found["label_tokens"].astype(np.int64)
        losses = Losses(found["keys"], tokens, found["best"], found["last"])
        shapes = {array.shape for array in (losses.keys, tokens, losses.best, losses.last)}
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError) as error:
        log.warning(f"{folder / FILE} cannot be read ({error})")
        return None
    if len(shapes) != 1 or len(tokens) == 0:
        log.warning(f"{folder / FILE} cannot be used: its columns have the shapes {shapes}")
        return None
    return losses
