"""Tell transformers which positions of a row belong together, so that it need not look.

It finds out by itself whether a row holds several examples, from the values of the positions, and
to read them the host waits until the GPU has done all its work: at each forward pass.
"""

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def told(position_ids: Tensor | None) -> Iterator[None]:
    """Let transformers take `position_ids`, int64 [B, T], for packed examples; None: one a row."""
    masks = sys.modules.get("transformers.masking_utils")
    looks = getattr(masks, "find_packed_sequence_indices", None)
    if looks is None:
        yield
        return
    known = None if position_ids is None else _numbers(position_ids)
    masks.find_packed_sequence_indices = lambda _: known  # type: ignore[union-attr]
    try:
        yield
    finally:
        masks.find_packed_sequence_indices = looks  # type: ignore[union-attr]


def _numbers(position_ids: Tensor) -> Tensor:
    """Number the examples of each row: one begins wherever positions do not go on."""
    steps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1)
    return (steps != 1).cumsum(-1)
