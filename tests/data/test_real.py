"""Real text, the true GPT-2 tokenizer, and models that learn what the data says."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from llmexp.data import Batches, Corpus, Examples

Make = Callable[..., Corpus]


@pytest.fixture
def gpt2_tokenizer(shared: Path) -> Any:
    """The tokenizer of GPT-2, from its own files."""
    from transformers import GPT2TokenizerFast

    folder = shared / "gpt2-tokenizer"
    return GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


@pytest.mark.parametrize("name", ["wikitext2-valid.txt", "tinyshakespeare.txt"])
def test_the_store_holds_what_the_tokenizer_says(
    corpus: Make, gpt2_tokenizer: Any, shared: Path, name: str
) -> None:
    path = shared / name
    made = corpus(
        "text", path=str(path), validation_path=str(path), using=gpt2_tokenizer, max_length=4096
    )
    lines = [line for line in path.read_bytes().decode().split("\n") if line.strip()]
    assert len(made.train) == len(lines)
    for number in range(0, len(lines), 97):
        ids = made.train[number].input_ids.tolist()
        assert ids == [*gpt2_tokenizer.encode(lines[number]), 50256]
        assert gpt2_tokenizer.decode(ids[:-1]) == lines[number]


def test_duplicates_of_tiny_shakespeare_stay_on_one_side(
    corpus: Make, gpt2_tokenizer: Any, shared: Path
) -> None:
    made = corpus("text", path=str(shared / "tinyshakespeare.txt"), using=gpt2_tokenizer)
    assert made.report.duplicates == 7056
    sides = [
        {example.input_ids.tobytes() for example in side} for side in (made.train, made.validation)
    ]
    assert not sides[0] & sides[1]


def train(model: Any, batches: Batches, *, steps: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        batch = batches[step]
        for rows in batch.micro_batches(64):
            loss_sum(model, rows).div(batch.label_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def loss_sum(model: Any, rows: Any) -> torch.Tensor:
    logits = model(input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="sum")


def test_a_model_learns_to_stop(
    corpus: Make, tokenizer: Any, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    lines = [f"the {number} quick fox" for number in range(32)]
    (tmp_path / "data.txt").write_text("\n".join(lines))
    path = str(tmp_path / "data.txt")
    made = corpus("text", path=path, validation_path=path, max_length=64)
    model = gpt2(vocab_size=300)
    train(model, Batches(made.train, batch_size=32, max_length=64), steps=80, lr=1e-2)
    prompt = torch.tensor([tokenizer.encode("the 7")])
    made_up = model.generate(
        prompt, max_new_tokens=40, do_sample=False, eos_token_id=0, pad_token_id=0
    )
    assert made_up[0, -1] == 0
    assert made_up.shape[1] < 40


@pytest.mark.slow
def test_a_fresh_model_learns_more_of_wikitext_than_its_words(
    corpus: Make, tokenizer: Any, shared: Path, gpt2: Callable[..., Any]
) -> None:
    made = corpus("text", path=str(shared / "wikitext2-valid.txt"), max_length=64)
    model = gpt2(vocab_size=300, n_embd=64, n_positions=64)
    train(model, Batches(made.train, batch_size=32, max_length=64), steps=150, lr=5e-3)
    batches = Batches(made.validation, batch_size=64, max_length=64, shuffle=False)
    loss = 0.0
    with torch.no_grad():
        for step in range(batches.steps_per_epoch):
            loss += sum(float(loss_sum(model, rows)) for rows in batches[step].micro_batches(8))
    assert loss / made.report.validation.label_tokens < unigram_entropy(made.validation)


def unigram_entropy(examples: Examples) -> float:
    counts = Counter(token for example in examples for token in example.input_ids[1:].tolist())
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())
