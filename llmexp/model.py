"""The model and its tokenizer: from the Hugging Face hub, its cache, a local folder, or fresh.

No model is ever random where pretrained weights were asked for.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmexp import model_family as family
from llmexp.errors import RequestError

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_SAMPLE = 50_000_000  # characters a fresh tokenizer is trained on, at most

# how families name their dropout probabilities in config.json
DROPOUTS = (
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),  # GPT-2, GPT-J
    *("attention_dropout", "hidden_dropout", "dropout", "activation_dropout", "embed_dropout"),
    *("resid_dropout", "embedding_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"),
)

READABLE = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json")
FILES = [
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.safetensors",
]  # no pickle, no copies of other frameworks

NEEDED = """Bring the files once, by a machine that has a network:
    hf download {name} config.json generation_config.json model.safetensors tokenizer.json \\
       tokenizer_config.json vocab.json merges.txt --local-dir MY_FOLDER
(config.json, model.safetensors and the tokenizer's files are what counts), then name the folder:
    model.weights=MY_FOLDER
For a model of the GPT-2 family, or one whose config.json is at hand, fresh weights need no file:
    model.weights=null"""


@dataclass(frozen=True)
class Model:
    """Which model, and where its weights and tokenizer come from (conf/model)."""

    name: str  # for people and folder names; a hub id or folder with model=hf
    weights: str | None  # hub id or local folder; None: fresh weights
    tokenizer: (
        str | None
    )  # hub id or local folder; None: beside the weights, or trained on the data
    architecture: dict[str, int] | None  # of a GPT-2; None: as the model's own config.json says
    dropout: float | None  # None: as the model's own config.json says
    lr: float  # the peak learning rate that suits these weights; conf/optimizer refers to it

    def config(self) -> Any:
        """Return the transformers config of this model, without loading weights.

        Raises RequestError where it can be neither found nor derived, or is no causal language
        model's.
        """
        from transformers import GPT2Config

        source = self.weights or (None if self.architecture else self.name)
        if source is not None:
            config = read_config(source)
        else:
            # the ids are the tokenizer's, and are set when it is known
            config = GPT2Config(**(self.architecture or {}), bos_token_id=None, eos_token_id=None)
        set_dropout(config, self.dropout, self.name)
        return config

    def load_tokenizer(self, texts: Iterable[str], *, vocab_size: int) -> Any:
        """Return the tokenizer: as named, as found beside the weights, or trained on `texts`."""
        from transformers import AutoTokenizer, GPT2TokenizerFast

        source = self.tokenizer or self.weights or (None if self.architecture else self.name)
        if source is None:
            return train_tokenizer(texts, vocab_size=vocab_size)
        folder = found(source)
        told = any((Path(folder) / name).is_file() for name in READABLE if name != "vocab.json")
        kind = AutoTokenizer if told else GPT2TokenizerFast  # a bare vocab.json and merges.txt
        try:
            tokenizer = kind.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as problem:
            raise RequestError(
                f"{source} holds no tokenizer that can be read ({first_line(problem)}): add its "
                "tokenizer.json (or vocab.json and merges.txt), or set model.tokenizer=FOLDER"
            ) from None
        if tokenizer.eos_token_id is None:
            raise RequestError(
                f"the tokenizer in {source} names no end-of-text token (eos_token), so a model "
                "could "
                "not learn to stop: name one in its tokenizer_config.json"
            )
        return tokenizer

    def build(self, config: Any, tokenizer: Any, *, device: torch.device) -> nn.Module:
        """Return the model on `device`, in float32, ready to train.

        Raises RequestError where the weights cannot be read, or the tokenizer does not fit them.
        """
        from transformers import AutoModelForCausalLM

        if len(tokenizer) > config.vocab_size:
            raise RequestError(
                f"the tokenizer has {len(tokenizer):,} entries, {self.name} only "
                f"{config.vocab_size:,}:"
                " use the model's own tokenizer (model.tokenizer=null)"
            )
        if self.weights is None:
            config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=family.attention_of(config), dtype=torch.float32
            )
        else:
            model = self._pretrained(config)
        fuse_gelu(model)
        return model.to(device)  # type: ignore[no-any-return]

    def _pretrained(self, config: Any) -> Any:
        from transformers import AutoModelForCausalLM

        assert self.weights is not None
        folder = found(self.weights)
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                attn_implementation=family.attention_of(config),
                dtype=torch.float32,
                use_safetensors=True,  # no pickle
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as problem:  # transformers and safetensors raise many kinds
            raise RequestError(
                f"model.weights={self.weights} cannot be loaded: {first_line(problem)}\n"
                + NEEDED.format(name="OWNER/NAME")
            ) from None
        if missing := sorted(report["missing_keys"]):
            raise RequestError(
                f"model.weights={self.weights} lacks {len(missing)} of the model's tensors, the "
                "first "
                f"is {missing[0]}: they would stay random. Is it a checkpoint of another model?"
            )
        return model


def read_config(source: str) -> Any:
    """Return the config in `source`, of a causal language model.

    Raises RequestError where it cannot be read, or is of another kind of model.
    """
    import transformers

    folder = found(source)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as problem:  # transformers raises many kinds
        raise RequestError(
            f"the config.json of {source} cannot be read: {first_line(problem)}\n"
            "A model needs a whole config.json, of a family that transformers "
            f"{transformers.__version__} knows: bring the file again, or name another model"
        ) from None
    family.refuse_other_kinds(config, source)
    return config


def found(source: str) -> str:
    """Return the folder that holds `source`: itself, or the cached copy of the hub's files.

    Raises RequestError, within seconds, that says which files to bring.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in READABLE):
            raise RequestError(
                f"{source} holds none of {', '.join(READABLE)}.\n{NEEDED.format(name='OWNER/NAME')}"
            )
        return str(folder)
    if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise RequestError(
            f"the folder {source} does not exist.\n{NEEDED.format(name='OWNER/NAME')}"
        )
    return _hub_folder(source)


def _hub_folder(repo: str) -> str:
    """Fetch the files of `repo` from the hub, or take its cached copy where the hub cannot be
    reached."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import get_session

    try:
        try:
            get_session().head(
                constants.ENDPOINT, timeout=5
            )  # one try: downloads would retry for long
            reachable = True
        except Exception:  # offline mode, name resolution, proxy, time-out: all mean the same here
            reachable = False
        return str(
            snapshot_download(
                repo, allow_patterns=FILES, ignore_patterns=["*/*"], local_files_only=not reachable
            )
        )
    except GatedRepoError:
        why = "is gated: accept its licence on the hub and set HF_TOKEN in the environment"
    except RepositoryNotFoundError:
        why = "is not on the Hugging Face hub (or is private: set HF_TOKEN in the environment)"
    except HFValidationError:
        why = "is neither a local folder nor a hub id (owner/name)"
    except Exception as problem:  # whatever the network or the disk does
        why = (
            f"could not be fetched from the Hugging Face hub ({first_line(problem)})"
            if reachable
            else "is not in the local cache, and the Hugging Face hub cannot be reached"
        )
    raise RequestError(f"{repo} {why}.\n{NEEDED.format(name=repo)}")


def quiet() -> None:
    """Keep transformers' progress bars and hints off the screen: what matters, llmexp says
    itself."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def first_line(problem: BaseException) -> str:
    """Return the first line of an error, for a message of ours, with what a colon announces."""
    text = re.sub(r":\s*\n\s*", ": ", str(problem).strip())
    return text.partition("\n")[0] or type(problem).__name__


def set_dropout(config: Any, dropout: float | None, name: str) -> None:
    """Set every dropout probability that this family has. Raises RequestError where it has none."""
    if dropout is None:
        return
    keys = [key for key in DROPOUTS if hasattr(config, key)]
    if not keys and dropout > 0:
        raise RequestError(
            f"model.dropout={dropout}: {name} ({config.model_type}) has no dropout: set "
            "model.dropout=null"
        )
    for key in keys:
        setattr(config, key, dropout)


def fuse_gelu(model: nn.Module) -> None:
    """Put PyTorch's fused tanh GELU in place of transformers' `gelu_new`: the same function in one
    pass.

    The config keeps its name, so what is saved loads everywhere.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(module, name, nn.GELU(approximate="tanh"))


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Any:
    """Train GPT-2's kind of tokenizer (byte-level BPE) on `texts`; deterministic."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2TokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_up_to(texts, TOKENIZER_SAMPLE), trainer)
    return GPT2TokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
    )


def _up_to(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        yield text
        characters -= len(text)


def parameter_count(model: nn.Module) -> int:
    """Count the parameters; a tied weight counts once."""
    return sum(p.numel() for p in model.parameters())


def load_folder(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """Return the model and tokenizer that a run left in `folder` (best/ or final/), ready to
    generate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except Exception as problem:  # transformers and safetensors raise many kinds
        raise RequestError(f"{folder} cannot be loaded: {first_line(problem)}") from None
    fuse_gelu(model)
    return model.to(device).eval(), tokenizer


def pick_device(name: str) -> torch.device:
    """Return the device that `name` (auto, cuda or cpu) means on this machine.

    Raises RequestError for cuda where there is none.
    """
    if name not in ("auto", "cuda", "cpu"):
        raise RequestError(f"device={name} is none of auto, cuda, cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise RequestError("device=cuda, but PyTorch finds no CUDA device here: use device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
