"""A request for data as the command line makes it, and a small tokenizer trained on the spot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from llmexp.data import Corpus, Source, load

CONF = Path(__file__).resolve().parents[2] / "conf" / "data"
TEXT = (
    "the quick brown fox jumps over the lazy dog and the learning rate of a language model",
    "Machine learning is 42 % practice. What is 2+2? User: Assistant: ### Instruction: Response:",
)


def settings(option: str, **changes: Any) -> dict[str, Any]:
    """Return the arguments of conf/data/<option>.yaml with some of them changed."""
    page = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    assert isinstance(page, dict)
    arguments = {str(name): value for name, value in page.items() if name != "_target_"}
    columns = {**arguments["columns"], **changes.pop("columns", {})}
    return {**arguments, **changes, "columns": columns}


@pytest.fixture
def source() -> Callable[..., Source]:
    """Load source(option, **changes)."""
    return lambda option, **changes: load(**settings(option, **changes))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE of 300 entries; end-of-text is 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


@pytest.fixture
def corpus(source: Callable[..., Source], tokenizer: Any, tmp_path: Path) -> Callable[..., Corpus]:
    """Tokenise corpus(option, seed=..., batch_size=..., **changes)."""

    def make(
        option: str, *, seed: int = 42, batch_size: int = 1, using: Any = tokenizer, **changes: Any
    ) -> Corpus:
        cache = changes.pop("cache_dir", tmp_path / "cache")
        loaded = source(option, **changes)
        return loaded.tokenize(using, cache_dir=cache, seed=seed, batch_size=batch_size)

    return make


@pytest.fixture
def texts(tokenizer: Any) -> Callable[[Corpus], list[str]]:
    """Decode every example of both sides, sorted, without the end-of-text."""

    def decode(corpus: Corpus) -> list[str]:
        examples = [*corpus.train, *corpus.validation]
        return sorted(tokenizer.decode(example.input_ids[:-1]) for example in examples)

    return decode
