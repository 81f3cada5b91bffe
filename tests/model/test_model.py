"""Loading: real files, fresh weights, and clear refusals."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmexp.errors import RequestError
from llmexp.memory.trace import step
from llmexp.model import (
    Model,
    fuse_gelu,
    load_folder,
    parameter_count,
    train_tokenizer,
)
from llmexp.model_family import attention_of
from llmexp.probe import try_out

CPU = torch.device("cpu")
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 300}
TEXTS = [f"the {word} sat on the mat" for word in ("cat", "dog", "ant", "owl")] * 3


def fresh(**changes: Any) -> Model:
    settings = {"name": "small", "weights": None, "tokenizer": None, "architecture": SMALL}
    return Model(**{**settings, "dropout": 0.1, "lr": 1e-3, **changes})


@pytest.fixture
def checkpoint(tmp_path: Path, gpt2: Callable[..., Any]) -> Path:
    """Return a folder with a small GPT-2 and its tokenizer, as Hugging Face writes them."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    gpt2(vocab_size=300).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def loaded(blueprint: Model) -> tuple[Any, Any]:
    config = blueprint.config()
    tokenizer = blueprint.load_tokenizer(TEXTS, vocab_size=config.vocab_size)
    return blueprint.build(config, tokenizer, device=CPU), tokenizer


def test_pretrained_weights_are_those_of_the_folder(
    checkpoint: Path, gpt2: Callable[..., Any]
) -> None:
    model, tokenizer = loaded(fresh(weights=str(checkpoint), dropout=0.25))
    expected = gpt2(vocab_size=300).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.config.resid_pdrop == model.config.attn_pdrop == 0.25
    assert model.config._attn_implementation == "sdpa"
    assert tokenizer("the cat").input_ids


def test_fresh_weights_follow_the_architecture_and_the_seed() -> None:
    torch.manual_seed(1)
    one, tokenizer = loaded(fresh())
    torch.manual_seed(1)
    other, _ = loaded(fresh())
    assert one.config.vocab_size == 300
    assert len(tokenizer) <= 300
    assert one.config.eos_token_id == tokenizer.eos_token_id == 0
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_fresh_model_of_any_family_by_its_folder(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    ).save_pretrained(tmp_path)
    train_tokenizer(TEXTS, vocab_size=300).save_pretrained(tmp_path)
    model, _ = loaded(fresh(name=str(tmp_path), architecture=None, dropout=None))
    assert model.config.model_type == "llama"
    assert parameter_count(model) > 0


def test_a_family_without_a_fused_kernel_is_eager_fresh_pretrained_and_in_the_plan(
    tmp_path: Path,
) -> None:
    from transformers import Gemma2Config, GPT2Config

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Gemma2Config(vocab_size=300, **sizes, **heads)
    config.save_pretrained(tmp_path)
    train_tokenizer(TEXTS, vocab_size=300).save_pretrained(tmp_path)
    any_family = {"name": str(tmp_path), "architecture": None, "dropout": None}
    one, _ = loaded(fresh(**any_family))
    one.save_pretrained(tmp_path)
    other, _ = loaded(fresh(**any_family, weights=str(tmp_path)))
    used, _ = load_folder(tmp_path, CPU)
    for model in (one, other, used, step.bare_model(config)):
        assert model.config._attn_implementation == "eager"
    assert attention_of(GPT2Config()) == "sdpa"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"model_type": "gpt2", "n_la', "not a valid JSON file"),
        ('{"model_type": "wonder"}', "wonder"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "hidden_size.*'wide'"),
        ("[]", "model_type"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RequestError, match=rf"config\.json of .* cannot be read: .*{why}"):
        fresh(name=str(tmp_path), architecture=None).config()


SEE_ALL: dict[str, Any] = {
    "T5": {"d_model": 32},
    "Bert": {"hidden_size": 32, "num_attention_heads": 2},
    "XLM": {"emb_dim": 32, "n_heads": 2},
    "XLNet": {"d_model": 32, "n_head": 2, "n_layer": 1},
    "BertGeneration": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
}


@pytest.mark.parametrize("family", SEE_ALL)
def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path, family: str) -> None:
    import transformers

    config = getattr(transformers, f"{family}Config")(vocab_size=300, **SEE_ALL[family])
    config.save_pretrained(tmp_path)
    train_tokenizer(TEXTS, vocab_size=300).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="is no causal language model") as caught:
        model, _ = loaded(fresh(name=str(tmp_path), architecture=None, dropout=None))
        try_out(model, "it")
    assert "model=gpt2" in str(caught.value)


def test_no_hub_and_no_copy_is_refused_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(RequestError) as caught:
        fresh(weights="openai-community/gpt2-medium").config()
    assert time.monotonic() - started < 10
    for part in (
        "model.safetensors",
        "tokenizer.json",
        "model.weights=MY_FOLDER",
        "model.weights=null",
    ):
        assert part in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for weights in (str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(RequestError, match="Bring the files"):
            fresh(weights=weights).config()


def test_damaged_weights_are_refused(checkpoint: Path) -> None:
    blob = checkpoint / "model.safetensors"
    blob.write_bytes(blob.read_bytes()[:-100])
    with pytest.raises(RequestError, match="cannot be loaded"):
        loaded(fresh(weights=str(checkpoint)))


def test_weights_of_another_model_are_refused_not_left_random(
    checkpoint: Path, gpt2: Callable[..., Any], tmp_path: Path
) -> None:
    gpt2(vocab_size=300, n_layer=1).save_pretrained(tmp_path / "short")
    shutil.copy(tmp_path / "short" / "model.safetensors", checkpoint / "model.safetensors")
    with pytest.raises(RequestError, match="would stay random|cannot be loaded"):
        loaded(fresh(weights=str(checkpoint)))


def test_pickled_weights_are_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(RequestError, match=r"model\.safetensors"):
        loaded(fresh(weights=str(checkpoint)))


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(checkpoint: Path) -> None:
    small = fresh(architecture={**SMALL, "vocab_size": 40}, tokenizer=str(checkpoint))
    with pytest.raises(RequestError, match="entries"):
        loaded(small)


def test_dropout_where_a_family_has_none_is_refused(tmp_path: Path) -> None:
    from transformers import GemmaConfig, MambaConfig

    MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=r"model\.dropout=null"):
        fresh(name=str(tmp_path), architecture=None).config()
    assert GemmaConfig().attention_dropout == 0.0


def test_the_fused_gelu_is_the_same_function(gpt2: Callable[..., Any]) -> None:
    model = gpt2().double().eval()
    ids = torch.arange(20)[None]
    before = model(ids).logits
    fuse_gelu(model)
    assert "NewGELU" not in str(model)
    assert torch.allclose(before, model(ids).logits, atol=1e-12)
    assert model.config.activation_function == "gelu_new"


def test_a_trained_tokenizer_is_deterministic_and_loses_nothing() -> None:
    one, other = (train_tokenizer(TEXTS, vocab_size=300) for _ in range(2))
    text = "Ünïcode  naïve\tcat\n☃ 日本 \x00!"
    assert one(text).input_ids == other(text).input_ids
    assert one.decode(one(text).input_ids) == text
    assert one.eos_token_id == 0


def test_the_true_gpt2_tokenizer_files(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(shared / "gpt2-tokenizer", folder)
    tokenizer = fresh(tokenizer=str(folder)).load_tokenizer([], vocab_size=50257)
    assert len(tokenizer) == 50257
    assert tokenizer("Hello world").input_ids == [15496, 995]
    assert tokenizer.eos_token_id == 50256


def test_a_saved_folder_loads_again(checkpoint: Path) -> None:
    model, tokenizer = load_folder(checkpoint, CPU)
    assert not model.training
    assert tokenizer.eos_token == "<|endoftext|>"
    with pytest.raises(RequestError, match="cannot be loaded"):
        load_folder(checkpoint.parent, CPU)
