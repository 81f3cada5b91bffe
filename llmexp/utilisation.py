"""Model FLOP utilisation: how much of what the machine could multiply becomes training."""

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmexp.peak import peak
from llmexp.precision import Precision

log = logging.getLogger("llmexp")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # not every token meets all


@dataclass
class Done:
    """What passed through a model."""

    inputs: int = 0  # tokens read, padding not counted
    pairs: int = 0  # sum over the examples of their length squared
    labels: int = 0  # tokens predicted


@dataclass(frozen=True)
class Work:
    """The FLOP of a training step that the model itself asks for, forward and backward.

    As in PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): 6 N + 12 L H Q T per token, N
    the parameters, L layers, H heads of size Q, T tokens in sight. N has no embeddings that are
    only looked up. The head counts once per label, as nothing else passes through it, and T is the
    length of the example itself. What is computed twice (activation checkpointing) counts once.
    """

    per_input: float
    per_label: float
    per_pair: float

    def of(self, done: Done) -> float:
        """Return the FLOP of what was done."""
        return (
            self.per_input * done.inputs + self.per_label * done.labels + self.per_pair * done.pairs
        )


def work_of(model: Any) -> Work:
    """Count the work of a transformers causal LM.

    Raises AttributeError or ValueError where the formula does not hold for it.
    """
    config = model.config
    if any(getattr(config, name, None) for name in EXPERTS):
        raise ValueError("a mixture of experts")
    head = model.get_output_embeddings().weight
    tables = [table.weight for table in model.modules() if isinstance(table, nn.Embedding)]
    aside = {id(weight) for weight in (head, *tables)}
    body = sum(weight.numel() for weight in model.parameters() if id(weight) not in aside)
    heads = getattr(config, "num_attention_heads", 0)
    size = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    return Work(6.0 * body, 6.0 * head.numel(), 12.0 * config.num_hidden_layers * heads * size)


def sizes(segments: Tensor) -> tuple[int, int]:
    """Return the tokens of rows, and the sum of the squared lengths of the examples in them.

    `segments`: the example at each position, -1 where there is none, int64 [B, T] on the CPU.
    """
    owners, lengths = torch.unique_consecutive(segments, return_counts=True)
    lengths = lengths[owners >= 0]
    return int(lengths.sum()), int((lengths * lengths).sum())


class Utilisation:
    """Holds the work of one model against the peak of its device."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        """Count the work, and measure the peak unless it is known; a model it cannot count has no
        utilisation."""
        self._peak, self._is_certain = math.nan, False
        try:
            self._work = work_of(model)
            self._device = next(model.parameters()).device
            self._dtype, self._width = precision.dtype, int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        except Exception as problem:  # a number to look at must not cost a run
            log.debug(f"no model FLOP utilisation: {problem}")
        else:
            self._peak = peak(self._device, self._dtype, width=self._width)

    def share(self, done: Done, seconds: float) -> float:
        """Return the share of the peak that was reached, NaN where it is not known.

        Faster than the peak: then that was measured on a busy machine, and is measured anew once.
        """
        if not (seconds > 0 and self._peak > 0):
            return math.nan
        reached = self._work.of(done) / seconds
        if reached > self._peak and not self._is_certain:
            self._is_certain = True
            again = peak(self._device, self._dtype, width=self._width, anew=True)
            self._peak = max(self._peak, again)
        return reached / self._peak
