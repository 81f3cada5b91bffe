"""A model whose head cannot be reached trains on full logits, and the person is told why."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertConfig

from llmexp import job
from llmexp.model import train_tokenizer
from llmexp.plan import composed
from llmexp.sweep.trial import NullTrial

LINES = [f"line {n} of many words" for n in range(40)]
WANTED = (
    *("model=hf", "model.name=family", "model.weights=null", "model.tokenizer=family"),
    *("data=text", "data.path=lines.txt", "data.cache_dir=cache", "data.max_length=32"),
    *("samples.prompts=[]", "train.max_steps=1", "precision=fp32", "logger=none", "hw=cpu"),
)


def test_the_reason_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("\n".join(LINES))
    tokenizer = train_tokenizer(LINES, vocab_size=300)
    tokenizer.save_pretrained("family")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, vocab_size=300, intermediate_size=32, is_decoder=True)
    config.save_pretrained("family")  # a layer stands between its base model and its head
    job.train(composed(WANTED), Path("run"), list(WANTED), NullTrial())
    assert "the loss takes full logits: logits differ by" in capsys.readouterr().out
