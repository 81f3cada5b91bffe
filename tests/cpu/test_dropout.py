"""A faster dropout that is still dropout: exact probability, one mask both ways, reproducible."""

import numpy as np
import pytest
import torch
from torch import nn

from llmexp.cpu import dropout

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def dropped(values: torch.Tensor, probability: float, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return dropout.Dropout(probability)(values)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 1 / 3, 1e-5, 1 - 1e-5])
def test_the_share_of_dropped_elements_is_the_probability(probability: float) -> None:
    count = 4_000_000
    share = (dropped(torch.ones(count), probability) == 0).double().mean().item()
    # six sigma of the draws, and one of the 2^16 levels: between them a whole call decides
    bound = 6 * (probability * (1 - probability) / count) ** 0.5 + 2**-16
    assert abs(share - probability) <= bound


def test_the_probability_is_exact_over_many_calls() -> None:
    level = 100.25  # of 65,536: one call in four takes 101
    thresholds = [dropout.Masks(level / 2**16, seed)._threshold + 2**15 for seed in range(4000)]
    assert set(thresholds) == {100, 101}
    assert abs(np.mean(thresholds) - level) < 5 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_kept_is_scaled_and_the_gradient_has_the_same_mask(dtype: torch.dtype) -> None:
    values = torch.randn(50, 77, dtype=dtype, requires_grad=True)
    out = dropped(values, 0.25)
    (grad,) = torch.autograd.grad(out.sum(), values)
    kept = out != 0
    torch.testing.assert_close(out[kept], (values * (1 / 0.75))[kept])
    assert torch.equal(grad, kept * torch.full_like(grad, 1 / 0.75))
    assert 0.2 < 1 - kept.double().mean() < 0.3


def test_a_seed_decides_the_mask_whatever_the_threads_and_the_strides() -> None:
    values = torch.randn(600, 700)
    expected = dropped(values, 0.1)
    assert not torch.equal(expected, dropped(values, 0.1, seed=2))
    assert torch.equal(expected, dropped(values.t().contiguous().t(), 0.1))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(expected, dropped(values, 0.1))
    finally:
        torch.set_num_threads(threads)


def test_elements_are_dropped_independently() -> None:
    mask = dropout.Masks(0.5, 3).draw(1 << 20).double().neg()
    for lag in (1, 2, 3, 4, 8, 64):
        together = (mask[:-lag] * mask[lag:]).mean().item()
        assert abs(together - 0.25) < 0.003


def test_nothing_is_dropped_in_evaluation_and_the_ends_are_pytorchs() -> None:
    values = torch.randn(10)
    assert torch.equal(dropout.Dropout(0.5).eval()(values), values)
    assert torch.equal(dropped(values, 0.0), values)
    assert torch.equal(dropped(values, 1.0), torch.zeros(10))


def test_every_dropout_of_a_model_is_replaced() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.3)))
    dropout.replace(model)
    assert type(model[1][0]) is dropout.Dropout
    assert model[1][0].p == 0.3
