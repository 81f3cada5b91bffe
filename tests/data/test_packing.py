"""Packed is separate: the logits and gradients of an example do not know its neighbours."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

from llmexp.data import can_pack
from llmexp.data.packing import best_fit
from llmexp.loss import probe_head, reaches_head
from llmexp.probe import try_out

WIDTH = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
}
GROUPED = {**WIDTH, "num_key_value_heads": 1}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
PACKED: dict[str, dict[str, Any]] = {
    "GPT2": {**GPT2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
    "Llama": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": 4},
    "Qwen2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 16},
    "Gemma": {**GROUPED, "head_dim": 16},
    "Gemma2": {**GROUPED, "head_dim": 16, "sliding_window": 4},
    "Gemma3Text": {**GROUPED, "head_dim": 16, "sliding_window": 4},
    "GPTNeoX": WIDTH,
    "Phi": WIDTH,
}
REFUSED: dict[str, dict[str, Any]] = {
    "OPT": {
        "vocab_size": 96,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 64,
    },
    "Bloom": {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "Mamba": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
LENGTHS = (5, 9, 1, 7, 3, 12)


def fresh(family: str, settings: dict[str, Any], attention: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings)
    try:
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=torch.float32
        )
    except ValueError as error:
        pytest.skip(f"{family} has no {attention} attention: {error}")
    return model.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", PACKED)
def test_packed_is_separate(family: str, attention: str) -> None:
    model = fresh(family, PACKED[family], attention)
    torch.manual_seed(1)
    examples = [torch.randint(1, 96, (length + 1,)) for length in LENGTHS]
    alone = [model(input_ids=ids[None, :-1], use_cache=False).logits[0] for ids in examples]
    loss_of(alone, examples).backward()
    separate = gradients(model)

    rows = best_fit(torch.tensor(LENGTHS).numpy(), 16)
    packed: list[Any] = [None] * len(examples)
    width = max(sum(LENGTHS[item] for item in row) for row in rows)
    for row in rows:
        ids = torch.cat([examples[item][:-1] for item in row])
        places = torch.cat([torch.arange(LENGTHS[item]) for item in row])
        pad = (0, width - len(ids))
        logits = model(
            input_ids=F.pad(ids, pad)[None], position_ids=F.pad(places, pad)[None], use_cache=False
        ).logits[0]
        parts = logits[: len(ids)].split([LENGTHS[item] for item in row])
        for item, part in zip(row, parts, strict=True):
            packed[item] = part
    assert len(rows) < len(examples)
    assert max((a - b).abs().max().item() for a, b in zip(alone, packed, strict=True)) < 1e-5
    loss_of(packed, examples).backward()
    assert (gradients(model) - separate).abs().max() < 1e-5
    assert can_pack(model) == (True, "")


def loss_of(logits: list[torch.Tensor], examples: list[torch.Tensor]) -> torch.Tensor:
    targets = torch.cat([ids[1:] for ids in examples])
    return F.cross_entropy(torch.cat(logits), targets)


def gradients(model: Any) -> torch.Tensor:
    found = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    return torch.cat(found)


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_lets_examples_mix_is_refused(family: str) -> None:
    packs, reason = can_pack(fresh(family, REFUSED[family], "eager"))
    assert not packs
    assert reason.startswith(f"{family}ForCausalLM lets an example see others in its row")


def test_the_probe_leaves_the_model_as_it_was(gpt2: Callable[..., torch.nn.Module]) -> None:
    model = gpt2(resid_pdrop=0.5).train()
    before = [weight.clone() for weight in model.parameters()]
    state = torch.get_rng_state()
    assert can_pack(model) == (True, "")
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_model_without_positions_is_refused() -> None:
    class Old(torch.nn.Module):
        config = transformers.GPT2Config(vocab_size=96)

        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(1, 96)

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
            logits: torch.Tensor = self.head(input_ids[..., None].float())
            return logits

    packs, reason = can_pack(Old())
    assert not packs
    assert reason.startswith("Old cannot be called with position_ids alone")


@pytest.mark.parametrize("family", [*PACKED, *REFUSED])
def test_two_passes_say_what_the_single_tries_say(family: str) -> None:
    model, passes = fresh(family, {**PACKED, **REFUSED}[family], "eager"), []
    counting = model.base_model.register_forward_hook(lambda *_: passes.append(1))
    found, reaches = try_out(model, family), reaches_head(model)
    counting.remove()
    assert len(passes) == 2 or family in REFUSED
    assert found == (probe_head(model) or "", can_pack(model)[1])
    assert reaches == reaches_head(model) == (not found[0])
    assert bool(found[1]) == (family in REFUSED)
