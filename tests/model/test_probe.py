"""Trying a model out in two passes says what trying each of its abilities alone says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmexp.data import can_pack
from llmexp.errors import RequestError
from llmexp.loss import probe_head, reaches_head
from llmexp.probe import try_out
from tests.data.test_packing import PACKED, REFUSED, fresh

Make = Callable[..., torch.nn.Module]


@pytest.mark.parametrize("family", [*PACKED, *REFUSED])
def test_it_says_what_the_single_tries_say(family: str) -> None:
    model = fresh(family, {**PACKED, **REFUSED}[family], "eager")
    found = try_out(model, family)
    reaches = reaches_head(model)
    assert found == (probe_head(model), can_pack(model)[1])
    assert reaches == reaches_head(model) == (found[0] is None)
    assert bool(found[1]) == (family in REFUSED)


def test_two_passes_are_enough_and_leave_the_model_as_it_was(gpt2: Make) -> None:
    model, passes = gpt2(resid_pdrop=0.5).train(), []
    before = [weight.clone() for weight in model.parameters()]
    state = torch.get_rng_state()
    model.base_model.register_forward_hook(lambda *_: passes.append(1))
    assert try_out(model, "it") == (None, "")
    assert len(passes) == 2
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def changed(model: Any, change: Callable[[Any, Any], Any]) -> Any:
    """Return `model` with its logits as `change` makes them of its input and its logits."""

    class Odd(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, **kwargs: object) -> Any:
            output = super().forward(input_ids, **kwargs)
            output.logits = change(input_ids, output.logits)
            return output

    model.__class__ = Odd
    return model


def test_a_head_that_does_a_little_more_is_noticed(gpt2: Make) -> None:
    model = changed(gpt2(), lambda _, logits: logits * 1.003)
    because, unpacked = try_out(model, "it")
    assert "differ" in (because or "")
    assert unpacked == ""
    assert not reaches_head(model)


def test_a_model_that_looks_ahead_is_refused(gpt2: Make) -> None:
    model = changed(gpt2(), lambda ids, logits: logits + 0.01 * ids[:, -1:, None])
    with pytest.raises(RequestError, match="it is bidirectional"):
        try_out(model, "it")
