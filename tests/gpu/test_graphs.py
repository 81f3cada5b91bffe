"""What fills a pass up adds nothing, and a recorded pass is the pass itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llmexp import config, data, engine, optimizer
from llmexp.gpu import graphs
from llmexp.loss import IGNORE, probe_head
from llmexp.model import fuse_gelu, train_tokenizer
from llmexp.precision import Precision
from llmexp.request import CONF

LINES = [
    " ".join(["the", "cat", "sat", "on", "a", "mat"][: 1 + n % 6]) + f" {n}." for n in range(90)
]
PROMPTS = [f'{{"prompt": "what is {n}?", "completion": "{n} and one"}}' for n in range(90)]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def corpus(folder: Path, kind: str) -> Any:
    """Return lines, or prompts with answers of which only the latter are labels."""
    page, text = ("jsonl", PROMPTS) if kind == "prompts" else ("text", LINES)
    path = folder / "lines"
    path.write_text("\n".join(text))
    part = yaml.safe_load((CONF / "data" / f"{page}.yaml").read_text())
    part |= {"path": str(path), "max_length": 48, "cache_dir": str(folder / "cache")}
    return config.call(part).tokenize(train_tokenizer(LINES + PROMPTS, vocab_size=320), seed=0)


def batches(folder: Path, kind: str = "lines", *, pack: bool = True) -> data.Batches:
    return data.Batches(corpus(folder, kind).train, batch_size=16, max_length=48, pack=pack)


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("kind", ["lines", "prompts"])
@pytest.mark.parametrize("pack", [True, False], ids=["packed", "unpacked"])
def test_what_fills_a_pass_up_adds_nothing(
    gpt2: Any, tmp_path: Path, kind: str, pack: bool
) -> None:
    model = gpt2(vocab_size=320).double()
    probe_head(model)
    precision = Precision(name="fp32", tf32=False)
    shapes = set()
    for step in range(4):
        batch = batches(tmp_path, kind, pack=pack)[step]
        whole = engine.accumulate(model, batch, precision, 3)
        wanted = gradients(model)
        model.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for micro_batch in batch.micro_batches(3):
            rows = graphs.filled(micro_batch, 48)
            shapes.add(rows.shape)
            assert (rows.targets.flatten()[rows.labels] != IGNORE).sum() == len(micro_batch.labels)
            total += engine.backward(model, rows, batch.label_tokens, precision)
        assert total.item() == pytest.approx(whole.item(), rel=1e-6)  # a float32
        torch.testing.assert_close(gradients(model), wanted, atol=1e-12, rtol=1e-12)
        model.zero_grad()
    assert all(shape[1] % 6 == 0 for shape in shapes), "an eighth of data.max_length"


def test_rows_are_never_longer_than_asked_for(gpt2: Any, tmp_path: Path) -> None:
    micro_batch = next(batches(tmp_path)[0].micro_batches(8))
    width = micro_batch.input_ids.shape[1]
    for longest in (width, width + 1, 2 * width, 8 * width):
        found = graphs.filled(micro_batch, longest).input_ids.shape[1]
        assert width <= found <= min(longest, width + -(-longest // graphs.WIDTHS))
    assert graphs.filled(micro_batch, 1).input_ids.shape == micro_batch.input_ids.shape


def test_shapes_repeat(tmp_path: Path) -> None:
    every = batches(tmp_path)
    shapes = {
        graphs.filled(micro_batch, 48).shape
        for step in range(40)
        for micro_batch in every[step].micro_batches(4)
    }
    assert len(shapes) <= graphs.KEPT / 2


def small(family: str, dropout: float = 0.0) -> Any:
    """Return a small model of a family on the GPU."""
    import transformers

    sizes = {"vocab_size": 320, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    gpt = {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 64}
    gpt |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    wide = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32}
    wide |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    shape = gpt if family == "GPT2" else wide
    torch.manual_seed(0)
    made = getattr(transformers, f"{family}Config")(**sizes, **shape)
    model = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="sdpa").cuda()
    fuse_gelu(model)
    probe_head(model)
    return model.train()


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("family", "dropout", "precision"),
    [
        ("GPT2", 0.0, "fp32"),
        ("GPT2", 0.0, "bf16"),
        ("GPT2", 0.1, "bf16"),
        ("GPT2", 0.0, "fp16"),
        ("Llama", 0.0, "bf16"),
        ("Qwen3", 0.0, "bf16"),
        ("Mixtral", 0.0, "bf16"),
    ],
)
def test_a_recorded_pass_is_the_pass_itself(
    tmp_path: Path, family: str, dropout: float, precision: str
) -> None:
    model = small(family, dropout)
    chosen = Precision(name=precision, tf32=False).choose(torch.device("cuda"))
    every, run = batches(tmp_path), graphs.Graphs(48)
    for step in range(8):
        batch = every[step % 2]
        torch.manual_seed(step)
        loss = run(model, batch, chosen, 4).item()
        found = gradients(model)
        model.zero_grad(set_to_none=True)
        torch.manual_seed(step)
        plain = sum(
            run._pass(model, rows, batch.label_tokens, chosen).item()
            for micro_batch in batch.micro_batches(4)
            for rows in [graphs.filled(micro_batch, 48).to(torch.device("cuda"))]
        )
        assert loss == pytest.approx(plain, rel=1e-5)
        torch.testing.assert_close(
            found, gradients(model), rtol=1e-2, atol=1e-5 * max(1, chosen.scaler.get_scale())
        )
        model.zero_grad(set_to_none=True)
    print(family, dropout, precision, "refused" if run._waits else f"{len(run._passes)} graphs")
    assert run._passes or family == "Mixtral"


@on_gpu
@pytest.mark.gpu
def test_a_step_by_graphs_never_waits_for_the_gpu(tmp_path: Path) -> None:
    model, every, run = small("GPT2", 0.1), batches(tmp_path), graphs.Graphs(48)
    adam = optimizer.build(model, partial(torch.optim.AdamW, lr=1e-3, fused=True))
    precision = Precision(name="bf16", tf32=False).choose(torch.device("cuda"))
    losses = []
    for step in range(40):
        torch.cuda.set_sync_debug_mode("error" if step > 10 else "default")
        loss = run(model, every[0], precision, 8)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step_if_finite(adam, precision.scaler, loss + norm)
        adam.zero_grad(set_to_none=True)
        losses.append(loss)
    torch.cuda.set_sync_debug_mode("default")
    assert losses[-1] < losses[0] - 0.3


@on_gpu
@pytest.mark.gpu
def test_more_shapes_than_are_kept_are_recorded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "KEPT", 1)
    model, run = small("GPT2"), graphs.Graphs(48)
    precision = Precision(name="fp32", tf32=False).choose(torch.device("cuda"))
    batch = batches(tmp_path)[0]
    first = [run(model, batch, precision, size).item() for size in (1, 2, 8)]
    for _ in range(4):
        again = [run(model, batch, precision, size).item() for size in (1, 2, 8)]
        assert again == pytest.approx(first, rel=1e-5)
    assert len(run._passes) == 1
