"""A model is tried out in two passes, and what it cannot do is noticed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmexp.errors import RequestError
from llmexp.loss import reaches_head
from llmexp.probe import try_out

Make = Callable[..., torch.nn.Module]


def test_two_passes_are_enough_and_leave_the_model_as_it_was(gpt2: Make) -> None:
    model, passes = gpt2(resid_pdrop=0.5).train(), []
    before = [weight.clone() for weight in model.parameters()]
    state = torch.get_rng_state()
    model.base_model.register_forward_hook(lambda *_: passes.append(1))
    assert try_out(model, "it") == ("", "")
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
    model = changed(gpt2(), lambda _, logits: logits * 1.01)
    because, unpacked = try_out(model, "it")
    assert "differ" in because
    assert unpacked == ""
    assert not reaches_head(model)


def test_a_model_that_looks_ahead_is_refused(gpt2: Make) -> None:
    model = changed(gpt2().train(), lambda ids, logits: logits + 0.01 * ids[:, -1:, None])
    with pytest.raises(RequestError, match="it is bidirectional"):
        try_out(model, "it")
    assert model.training


def test_a_base_model_that_fails_in_its_own_way_is_tried_again(gpt2: Make) -> None:
    model = gpt2().train()
    forward = model.base_model.forward

    def fail(*args: Any, position_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if position_ids is not None:
            raise RuntimeError("rows of one example, please")
        return forward(*args, **kwargs)

    model.base_model.forward = fail
    because, unpacked = try_out(model, "it")
    assert because == ""
    assert "one example, please" in unpacked
    assert model.training
