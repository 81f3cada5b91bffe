"""What a model can do, tried on a few tokens before the run: predict from the past alone, give its
head what the loss reads, keep the examples of a row apart.

A try reads all weights once, whatever its tokens. Two are enough for a model that can do all three:
one of the model as it is, one of its base model and head over packed rows. That the base model
takes the same positions as the model, where it is given none, is not tried.
"""

from typing import Any

import torch
from torch import Tensor

from llmexp.data import can_pack
from llmexp.data.packing import LEAK, Neighbours
from llmexp.loss import Probe, head_of, hidden_states, probe_head
from llmexp.model_family import not_causal

FORESIGHT = 1e-4  # of the largest logit: same shapes, so zero but for the order of sums
SAME = 1e-3  # of the largest logit, as probe_head asks for; can_pack grants more to the shift


@torch.no_grad()
def try_out(model: Any, name: str) -> tuple[str, str]:
    """Return why the loss takes full logits, and why examples do not share rows; "" where they
    need not, and where they may.

    Raises RequestError for a model, `name`, whose logits depend on later tokens.
    """
    training, tried = model.training, Neighbours.of(model)
    model.eval()
    try:
        alone = _refuse_foresight(model, tried.example, name)
        does_all = _packs_through_head(model, tried, alone)
    finally:
        model.train(training)
    if does_all:
        model.llmexp_reaches_head = True  # as probe_head says it to the loss
        return "", ""
    return probe_head(model) or "", can_pack(model)[1]


def _refuse_foresight(model: Any, example: Tensor, name: str) -> Tensor:
    """Return the logits of `example`, [T], as [T, V]: the same whichever token comes after it."""
    after = torch.arange(2, device=example.device)[:, None]
    ids = torch.cat([example.expand(2, -1), after], dim=1)
    one, other = model(input_ids=ids, use_cache=False).logits[:, :-1]
    if (one - other).abs().max() > FORESIGHT * one.abs().max():
        why = "it is bidirectional, its logits depend on the tokens after them"
        raise not_causal(model.config, name, why)
    return one  # type: ignore[no-any-return]


def _packs_through_head(model: Any, tried: Neighbours, alone: Tensor) -> bool:
    """Say whether base model and head, called as the loss calls them, find the logits `alone`,
    [T, V], for the example in packed rows too."""
    rows = Probe(input_ids=tried.rows, targets=tried.rows, position_ids=tried.positions)
    try:
        packed = head_of(model).logits(hidden_states(model, rows))
        leak, shift = tried.differences(packed=packed, alone=alone)
    except Exception:  # families raise many kinds; probe_head and can_pack will say which it is
        return False
    return leak <= LEAK and shift <= SAME
