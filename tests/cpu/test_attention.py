"""Attention on a CPU equals PyTorch's, and its gradients those of finite differences."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from llmexp import cpu
from llmexp.cpu import attention

LENGTH = attention.QUERIES * 2 + 9  # more than two tiles, and a part of one


def heads(rows: int = 2, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shape = (rows, length, 3, 8)
    return [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]


def packed(rows: int, length: int, longest: int) -> Tensor:
    """Return the mask of examples of 1, 2, 3, ... tokens after each other."""
    sizes = torch.arange(length) % longest + 1
    example = torch.repeat_interleave(torch.arange(length), sizes)[:length]
    mask = (example[:, None] == example[None]).tril()
    return mask.expand(rows, 1, length, length)


@pytest.mark.parametrize("longest", [None, 1, 7, 50])
@pytest.mark.parametrize("length", [1, 5, attention.QUERIES, LENGTH])
def test_without_dropout_it_is_pytorchs(length: int, longest: int | None) -> None:
    parts = heads(length=length)
    mask = packed(2, length, longest) if longest else None
    ours = attention.Attention.apply(*parts, mask, 0.3, 0.0, 0)
    theirs = F.scaled_dot_product_attention(
        *parts, attn_mask=mask, is_causal=mask is None, scale=0.3
    )
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    for one, other in zip(
        torch.autograd.grad((ours * weights).sum(), parts),
        torch.autograd.grad((theirs * weights).sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("longest", [None, 4])
def test_with_dropout_its_gradients_are_those_of_finite_differences(longest: int | None) -> None:
    parts = [part[:1, :1, :, :3].detach().requires_grad_() for part in heads(length=9)]
    mask = packed(1, 9, longest) if longest else None
    assert torch.autograd.gradcheck(
        lambda *parts: attention.Attention.apply(*parts, mask, 0.3, 0.4, 7), parts
    )


def test_with_dropout_the_mean_over_seeds_is_the_result_without() -> None:
    parts = [part.detach() for part in heads(rows=1, length=20)]
    results = [attention.Attention.apply(*parts, None, 0.3, 0.2, seed) for seed in range(3000)]
    drawn = torch.stack(results)
    error = drawn.mean(0) - attention.Attention.apply(*parts, None, 0.3, 0.0, 0)
    assert (error.abs() <= 6 * drawn.std(0) / 3000**0.5 + 1e-12).all()


@pytest.mark.parametrize("longest", [None, 50])
@pytest.mark.parametrize(("size", "offset"), [(1.0, 0.0), (5.0, 0.0), (2.0, 3.0)])
def test_bf16_is_as_near_to_the_exact_result_as_pytorchs_kernel(
    size: float, offset: float, longest: int | None
) -> None:
    parts = [
        (part.detach() * size + offset).bfloat16().requires_grad_() for part in heads(length=300)
    ]
    mask = packed(2, 300, longest) if longest else None
    upstream = torch.randn_like(parts[0])
    exact = [part.detach().double().requires_grad_() for part in parts]

    def errors(result: Tensor) -> list[float]:
        true = F.scaled_dot_product_attention(*exact, attn_mask=mask, is_causal=mask is None)
        wanted = [true, *torch.autograd.grad(true, exact, upstream.double())]
        found = [result, *torch.autograd.grad(result, parts, upstream)]
        assert all(one.dtype == torch.bfloat16 for one in found)
        return [(f - w).norm().item() for f, w in zip(found, wanted, strict=True)]

    theirs = F.scaled_dot_product_attention(*parts, attn_mask=mask, is_causal=mask is None)
    ours = attention.Attention.apply(*parts, mask, 8**-0.5, 0.0, 0)
    for error, their_error in zip(errors(ours), errors(theirs), strict=True):
        assert error <= 1.6 * their_error


CONFIGS = {
    "gpt2": GPT2Config(n_layer=2, n_embd=24, n_head=3, vocab_size=50, n_positions=200),
    "llama": LlamaConfig(
        num_hidden_layers=2,
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,  # shared by two heads each
        intermediate_size=48,
        vocab_size=50,
    ),
}


def gradients(
    model: nn.Module, is_packed: bool, *, casts: torch.dtype | None = None
) -> list[Tensor]:
    ids = torch.arange(200).view(2, 100) % 50
    positions = (torch.arange(100) % 30)[None].expand(2, -1) if is_packed else None
    model.zero_grad()
    with torch.autocast("cpu", casts or torch.bfloat16, enabled=casts is not None):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    logits.square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_model_has_the_same_gradients(family: str, is_packed: bool) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family], attn_implementation="sdpa")
    model.double().eval()
    theirs = gradients(model, is_packed)
    cpu.speed_up(model)
    assert model.config._attn_implementation == attention.NAME
    torch.testing.assert_close(gradients(model, is_packed), theirs)


@pytest.mark.parametrize("natively", [False, True])
@pytest.mark.parametrize("casts", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("is_packed", [False, True])
def test_under_autocast_its_gradients_are_as_near_as_pytorchs(
    family: str,
    is_packed: bool,
    casts: torch.dtype,
    natively: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "multiplies_bf16", lambda: natively)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family], attn_implementation="sdpa").eval()
    exact = torch.cat([part.flatten() for part in gradients(model, is_packed)])
    errors = []
    for ours in (False, True):
        if ours:
            attention.install(model)
        found = gradients(model, is_packed, casts=casts)
        errors.append((torch.cat([part.flatten() for part in found]) - exact).norm())
    assert errors[1] <= 1.5 * errors[0]


def test_a_query_that_sees_nothing_is_finite_and_others_do_not_see_it() -> None:
    parts = heads(rows=1, length=9, dtype=torch.bfloat16)
    mask = torch.ones(9, 9, dtype=torch.bool).tril_()[None, None].clone()
    mask[..., :4] = False  # padding on the left
    result = attention.Attention.apply(*parts, mask, 0.3, 0.0, 0)
    assert result.isfinite().all()
    result[:, :, 4:].sum().backward()
    for part in parts:
        assert part.grad.isfinite().all() and not part.grad[:, :, :4].any()


def test_a_query_that_overflows_is_nan_and_sees_no_later_key() -> None:
    parts = [torch.full((1, 1, 4, 2), value) for value in (1e20, -1e20, 1.0)]
    assert attention.Attention.apply(*parts, None, 1.0, 0.0, 0).isnan().all()


def test_activation_checkpointing_draws_the_same_masks() -> None:
    config = GPT2Config(n_layer=2, n_embd=24, n_head=3, vocab_size=50, n_positions=200)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    cpu.speed_up(model)
    ids = torch.randint(50, (2, 100))

    def gradients() -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(5)
        model(input_ids=ids, use_cache=False).logits.square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(), plain, rtol=0, atol=0)
