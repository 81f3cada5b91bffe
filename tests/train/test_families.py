"""Families whose attention has no fused kernel train, save and are used as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llmexp import job
from llmexp.generate import continuations
from llmexp.model import load_folder, train_tokenizer
from llmexp.plan import composed
from llmexp.sweep.trial import NullTrial

LINES = [f"line {n} of many words" for n in range(40)]
NAMED = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 4}
WIDE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
GROUPED = {**WIDE, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "Gemma2": GROUPED,
    "GPTJ": NAMED,
    "GPTNeo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "window_size": 8,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64,
    },
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "Mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "CodeGen": {**NAMED, "n_head": 4},
    "GptOss": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
}
WANTED = (
    *("model=hf", "model.name=family", "model.weights=null", "model.tokenizer=family"),
    *("data=text", "data.path=lines.txt", "data.cache_dir=cache", "data.max_length=32"),
    *("samples.prompts=[]", "train.max_steps=3", "train.log_every=1", "optimizer.lr=1e-2"),
    *("precision=fp32", "logger=none", "hw=cpu"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_and_is_used(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("\n".join(LINES))
    train_tokenizer(LINES, vocab_size=300).save_pretrained("family")
    config = getattr(transformers, f"{family}Config")(vocab_size=300, **FAMILIES[family])
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    config.save_pretrained("family")
    job.train(composed(WANTED), Path("run"), list(WANTED), NullTrial())

    steps = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = [step["train/loss"] for step in steps if "train/loss" in step]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.3
    remark = f"attention is eager: {config.model_type} has no fused kernel here"
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    told = family != "Mamba" and not kind._supports_sdpa  # no attention, or fused since 5.24
    assert (remark in capsys.readouterr().out) == told
    assert (remark in Path("run/report.md").read_text()) == told, "the report keeps the remarks"

    model, tokenizer = load_folder(Path("run/final"), torch.device("cpu"))
    (row,) = continuations(model, tokenizer, ["line 3"], max_new_tokens=4, temperature=0, seed=0)
    assert row.keys() == {"prompt", "text"}
