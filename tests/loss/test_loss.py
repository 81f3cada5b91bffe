"""The chunked loss is the full one: same values, same gradients, for every kind of head."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from llmexp import loss
from llmexp.loss import IGNORE, ChunkedCrossEntropy, Probe


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", 7)


def rows(vocabulary: int = 96) -> Probe:
    torch.manual_seed(1)
    targets = torch.randint(0, vocabulary, (3, 20))
    targets[torch.rand(3, 20) < 0.3] = IGNORE
    return Probe(torch.randint(0, vocabulary, (3, 20)), targets, None)


def test_loss_and_gradients_equal_transformers_own(gpt2: Callable[..., torch.nn.Module]) -> None:
    model = gpt2().double()
    assert loss.probe_head(model) is None
    batch = rows()
    ours = loss.loss_sum(model, batch)
    ours.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    labels = F.pad(batch.targets, (1, 0), value=IGNORE)[:, :-1]  # transformers shifts by itself
    count = (labels[:, 1:] != IGNORE).sum()
    kept = Probe(batch.input_ids, torch.where(torch.arange(20) == 19, IGNORE, batch.targets), None)
    theirs = model(input_ids=batch.input_ids, labels=labels).loss * count
    assert torch.allclose(loss.loss_sum(model, kept).float(), theirs, rtol=1e-6)
    logits = model(batch.input_ids).logits
    full = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    full.backward()
    assert torch.allclose(ours, full, atol=1e-10)
    for ours_, parameter in zip(gradients, model.parameters(), strict=True):
        assert torch.allclose(ours_, parameter.grad, atol=1e-10)


def test_losses_per_token_add_up_to_the_sum(gpt2: Callable[..., torch.nn.Module]) -> None:
    model = gpt2().double()
    loss.probe_head(model)
    each = loss.token_losses(model, rows())
    assert each.shape == ((rows().targets != IGNORE).sum(),)
    assert torch.allclose(each.sum(), loss.loss_sum(model, rows()).double(), rtol=1e-6)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gradcheck(has_bias: bool, scale: float, softcap: float | None) -> None:
    torch.manual_seed(2)
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True) if has_bias else None
    targets = torch.randint(0, 11, (9,))

    def chunked(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        return ChunkedCrossEntropy.apply(h, w, b, targets, scale, softcap)

    assert torch.autograd.gradcheck(chunked, (hidden, weight, bias))
    logits = F.linear(hidden, weight, bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    full = F.cross_entropy(logits, targets, reduction="sum")
    assert torch.allclose(chunked(hidden, weight, bias), full)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [63, 64, 67])
@pytest.mark.parametrize("has_bias", [False, True])
def test_tokens_that_only_align_the_head_take_part_in_nothing(
    has_bias: bool, vocabulary: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(3)
    hidden = torch.randn(9, 4).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, 4).to(dtype).float().requires_grad_()
    bias = torch.randn(vocabulary).to(dtype).float().requires_grad_() if has_bias else None
    targets = torch.randint(0, vocabulary, (9,))
    targets[4] = IGNORE
    parts = [part for part in (hidden, weight, bias) if part is not None]
    ours = ChunkedCrossEntropy.apply(hidden, weight, bias, targets, 1.0, None)
    full = F.cross_entropy(F.linear(hidden.float(), weight, bias), targets, reduction="sum")
    torch.testing.assert_close(ours, full, rtol=2e-2, atol=2e-2)
    for one, other in zip(
        torch.autograd.grad(ours, parts), torch.autograd.grad(full, parts), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_small_probabilities_survive_float16_because_the_loss_scale_comes_first() -> None:
    weight = torch.zeros(3, 2, requires_grad=True)
    hidden = torch.tensor([[1.0, 0.0]]).half()
    with torch.no_grad():
        weight[0, 0] = 17.0  # the others get probability 4e-8, below what float16 holds
    total = ChunkedCrossEntropy.apply(hidden, weight, None, torch.tensor([0]), 1.0, None)
    (total * 65536).backward()
    assert weight.grad is not None
    assert weight.grad[1, 0] / 65536 == pytest.approx(4.1e-8, rel=0.05)


def test_a_head_that_does_more_than_a_matrix_product_is_noticed(
    gpt2: Callable[..., torch.nn.Module],
) -> None:
    model = gpt2()
    original = type(model).forward

    class Odd(type(model)):  # type: ignore[misc]
        def forward(self, *args: object, **kwargs: object) -> object:
            output = original(self, *args, **kwargs)
            output.logits = output.logits * 2
            return output

    model.__class__ = Odd
    assert "differ" in (loss.probe_head(model) or "")
    full = F.cross_entropy(
        model(rows().input_ids).logits.flatten(0, 1), rows().targets.flatten(), reduction="sum"
    )
    assert torch.allclose(loss.loss_sum(model, rows()), full, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_the_head_does_not_know_is_refused(dtype: torch.dtype) -> None:
    hidden, weight = torch.randn(3, 4, dtype=dtype), torch.randn(11, 4)
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        ChunkedCrossEntropy.apply(hidden, weight, None, torch.tensor([1, 11, 2]), 1.0, None)
