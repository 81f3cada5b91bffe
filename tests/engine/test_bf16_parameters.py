"""A run whose weights are bf16: its step, its folder, and that a resume continues it bit by bit."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmexp import checkpoint, evaluate, generate, job
from llmexp.errors import RequestError
from llmexp.plan import composed
from llmexp.sweep.trial import NullTrial

TINY = (
    "model.architecture={n_layer:2,n_head:2,n_embd:32,n_positions:64,vocab_size:320}",
    *("model.dropout=0.1", "optimizer.lr=1e-3", "train.batch_size=4"),
    *("data=text", "data.path=lines.txt", "data.max_length=32", "data.cache_dir=cache"),
    *("samples.prompts=[the]", "samples.max_new_tokens=2", "checkpoint.keep=9"),
    *("train.log_every=1", "train.max_steps=6", "train.validate_every=0.5"),
    *("checkpoint.every_steps=1", "logger=none", "hw=cpu", "precision=bf16_parameters"),
)
LEFT = ("metrics.jsonl", "samples.jsonl", "final/model.safetensors", "best/model.safetensors")


def train(name: str, *overrides: str) -> Path:
    line = [*TINY, f"run.name={name}", *overrides]
    job.train(composed(line), Path("outputs") / name, line, NullTrial())
    return Path("outputs") / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Work in a folder with data and a finished run, outputs/whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("bf16"))
        lines = [f"{who} saw {what}, {n} times" for who in "abcd" for what in "wxyz" for n in "24"]
        Path("lines.txt").write_text("\n".join(lines))
        yield train("whole")


def test_what_a_run_keeps_is_bf16(folder: Path) -> None:
    for name in ("best", "final", "checkpoints/step-00000006"):
        weights = load_file(folder / name / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    first = load_file(folder / "checkpoints/step-00000000/model.safetensors")
    assert any(not torch.equal(first[name], now) for name, now in weights.items())


@pytest.mark.parametrize("step", [1, 4])
def test_a_resume_continues_it_bit_by_bit(folder: Path, step: int) -> None:
    shutil.copytree(folder, "outputs/copy", dirs_exist_ok=True)
    train("copy", f"resume=outputs/copy/checkpoints/step-0000000{step}")
    for name in LEFT:
        assert (folder / name).read_bytes() == Path("outputs/copy", name).read_bytes()


def test_another_cut_changes_it_by_rounding_only(folder: Path) -> None:
    losses = []
    for size in (1, 4):
        run = train(f"cut{size}", f"train.micro_batch_size={size}", "model.dropout=0")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["eval/loss"] for row in rows if "eval/loss" in row][-1])
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_it_is_evaluated_and_generates(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = min(row["eval/loss"] for row in rows if "eval/loss" in row)
    monkeypatch.setattr("sys.argv", ["evaluate", f"run={folder}", "device=cpu"])
    capsys.readouterr()
    evaluate._evaluate()
    told = capsys.readouterr().out
    found = json.loads(told[told.index("{") :])
    assert found["eval/loss"] == pytest.approx(best, rel=5e-3)
    monkeypatch.setattr(
        "sys.argv", ["generate", f"run={folder}", "prompt=a saw", "count=1", "device=cpu"]
    )
    generate._generate()
    assert capsys.readouterr().out.startswith("a saw")


def test_it_learns_what_fp32_learns(folder: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16_parameters"):
        longer = ("train.max_steps=60", "checkpoint.every_steps=null", "train.validate_every=9")
        run = train(f"long-{precision}", f"precision={precision}", *longer)
        last = (run / "metrics.jsonl").read_text().splitlines()[-1]
        losses.append(json.loads(last)["eval/loss"])
    assert losses[0] < 5.0, "it has learned something"
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_what_may_be_taken_cannot_change_half_way(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"train.allow: \[\] then, \['adamw8bit'\] now"):
        train("whole", "resume=auto", "train.allow=[adamw8bit]")


def test_a_checkpoint_says_what_was_taken(folder: Path) -> None:
    saved = checkpoint.peek(folder / "checkpoints/step-00000006")
    assert saved.state["taken"] == [] and saved.state["precision"] == "bf16_parameters"
    assert saved.environment["dtype"] == "bfloat16"
