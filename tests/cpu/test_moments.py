"""Moments that are made early are those that AdamW makes."""

import pytest
import torch

from llmexp import optimizer
from llmexp.checkpoint import tensors
from llmexp.cpu import moments


@pytest.mark.parametrize("amsgrad", [False, True])
def test_training_is_the_same(amsgrad: bool) -> None:
    def trained(early: bool) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        adamw = optimizer.build(
            model, lambda groups: torch.optim.AdamW(groups, amsgrad=amsgrad, fused=True)
        )
        if early:
            moments.make(adamw)
            assert len(adamw.state) == 4
        for _ in range(3):
            model(torch.randn(5, 3)).square().sum().backward()
            adamw.step()
            adamw.zero_grad()
        return model, adamw

    (ours, early), (theirs, late) = trained(True), trained(False)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
        assert early.state[one].keys() == late.state[other].keys()
        for name, value in late.state[other].items():
            assert torch.equal(early.state[one][name], value)
            assert early.state[one][name].dtype == value.dtype


def test_others_make_their_own() -> None:
    narrow = torch.nn.Linear(3, 4).bfloat16()
    for one in (torch.optim.SGD(narrow.parameters()), torch.optim.AdamW(narrow.parameters())):
        moments.make(one)
        assert not one.state


def test_a_checkpoint_before_the_first_step_is_no_larger() -> None:
    model = torch.nn.Linear(3, 4)
    adamw = torch.optim.AdamW(model.parameters())
    moments.make(adamw)
    assert tensors.of_optimizer(adamw, model)[0] == {}
    model(torch.ones(3)).sum().backward()
    adamw.step()
    assert len(tensors.of_optimizer(adamw, model)[0]) == 6


def test_a_checkpoint_before_the_first_step_keeps_what_is_not_zero() -> None:
    model = torch.nn.Linear(3, 4)
    sgd = torch.optim.SGD(model.parameters())
    sgd.state[model.weight] = {"step": 0, "anchor": torch.ones(2)}
    found, rest = tensors.of_optimizer(sgd, model)
    assert list(found) == ["state.0.anchor"] and rest["state"] == {"state.0.step": 0}
