"""`llmexp.evaluate` computes as it was asked to, and says what it had to do differently."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import BertConfig, BertLMHeadModel

from llmexp import evaluate, job
from llmexp.errors import RequestError
from llmexp.plan import composed
from llmexp.sweep.trial import NullTrial

WANTED = (
    "model.architecture={n_layer:2,n_head:2,n_embd:32,n_positions:64,vocab_size:300}",
    *("data=text", "data.path=lines.txt", "data.cache_dir=cache", "data.max_length=64"),
    *("samples.prompts=[]", "train.max_steps=1", "precision=fp32", "logger=none", "hw=cpu"),
)
Evaluate = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a small finished run, from within the folder that holds its data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("evaluate"))
        Path("lines.txt").write_text("\n".join(f"line {n} of many words" for n in range(200)))
        job.train(composed(WANTED), Path("outputs/run"), list(WANTED), NullTrial())
        yield Path("outputs/run")


@pytest.fixture
def evaluated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Evaluate:
    """Evaluate the run as a person would; return what stands on stdout and on stderr."""

    def call(*given: str) -> tuple[dict[str, Any], str]:
        line = ["evaluate", f"run={folder}", "device=cpu", *given]
        monkeypatch.setattr("sys.argv", line)
        capsys.readouterr()
        evaluate._evaluate()
        out, err = capsys.readouterr()
        return json.loads(out), err

    return call


def test_the_precision_that_is_asked_for_computes(evaluated: Evaluate) -> None:
    kinds: set[torch.dtype] = set()

    def see(module: torch.nn.Module, _: object) -> None:
        kinds.update(weight.dtype for weight in module.parameters(recurse=False))

    hook = register_module_forward_pre_hook(see)
    try:
        found, seen = {}, {}
        for name in ("fp32", "bf16", "bf16_parameters"):
            kinds.clear()
            result, _ = evaluated(f"precision={name}")
            assert result["precision"] == name
            found[name], seen[name] = result["eval/loss"], torch.bfloat16 in kinds
    finally:
        hook.remove()
    assert seen == {"fp32": False, "bf16": False, "bf16_parameters": True}
    assert len(set(found.values())) == 3, "each rounds in its own way"
    assert found["bf16_parameters"] == pytest.approx(found["fp32"], rel=5e-3)


def test_memory_that_runs_out_is_survived_and_told(evaluated: Evaluate) -> None:
    calm, err = evaluated("micro_batch_size=8")
    assert err == ""

    def full(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm) and len(given[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    hook = register_module_forward_pre_hook(full)
    try:
        survived, err = evaluated("micro_batch_size=8")
    finally:
        hook.remove()
    assert survived["eval/loss"] == pytest.approx(calm["eval/loss"], rel=1e-6)
    assert err.count("out of memory in step 0") >= 1 and "micro-batch 2" in err


def test_a_head_that_cannot_be_reached_is_told(evaluated: Evaluate, folder: Path) -> None:
    assert evaluated()[1] == ""
    shutil.copytree(folder / "best", folder / "final", dirs_exist_ok=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, vocab_size=300, intermediate_size=32, is_decoder=True)
    BertLMHeadModel(config).save_pretrained(folder / "final")
    result, err = evaluated("which=final")
    assert err.startswith("the loss takes full logits: logits differ by")
    assert result["eval/loss"] > 0


def test_less_than_one_row_is_refused(evaluated: Evaluate) -> None:
    with pytest.raises(RequestError, match="micro_batch_size=0 does not hold: .* at least 1"):
        evaluated("micro_batch_size=0")
