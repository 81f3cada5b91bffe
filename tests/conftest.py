"""What every test may use: small real models, and the config composed as the command line does
it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # tests fork, and a forked OpenMP pool hangs
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["WANDB_MODE"] = "offline"  # a test that wants a server starts its own
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def tiny_gpt2(**changes: Any) -> torch.nn.Module:
    """Return a fresh GPT-2, two layers and 32 wide."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 96}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**{**settings, **dropout, **ids, **changes}))


@pytest.fixture
def gpt2() -> Callable[..., torch.nn.Module]:
    """Make small fresh GPT-2 models."""
    return tiny_gpt2


@pytest.fixture
def shared() -> Path:
    """Real data: the GPT-2 tokenizer files, Tiny Shakespeare, WikiText-2; skip where they are
    not."""
    if not SHARED.is_dir():
        pytest.skip(f"real data is not here ({SHARED})")
    return SHARED
