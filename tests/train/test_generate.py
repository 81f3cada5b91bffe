"""Generating tells what was cut, and that memory ran out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from llmexp import generate
from llmexp.model import train_tokenizer

Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def generated(
    tmp_path: Path,
    gpt2: Callable[..., torch.nn.Module],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Generate:
    """Generate from a model of 64 positions: the exit code, stdout and stderr."""
    gpt2(vocab_size=300).save_pretrained(tmp_path)
    train_tokenizer(["the cat sat"] * 3, vocab_size=300).save_pretrained(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        given = [f"run={tmp_path}", "count=1", "device=cpu", *arguments]
        monkeypatch.setattr(sys, "argv", ["generate", *given])
        code = 0
        capsys.readouterr()  # what came before
        try:
            generate.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return call


def test_what_does_not_fit_the_positions_is_told(generated: Generate) -> None:
    assert generated("prompt=abc", "max_new_tokens=61")[2] == ""
    code, _, err = generated("prompt=abc", "max_new_tokens=62")
    assert code == 0
    assert err == (
        "max_new_tokens=62 is cut to 61: the model has 64 positions, the prompt takes 3\n"
    )
    code, _, err = generated("prompt=" + "x" * 70, "max_new_tokens=1")
    assert code == 0
    assert err == "the prompt has 70 tokens, the model 64 positions: its last 63 are used\n"


def test_memory_that_runs_out_is_told_in_words(generated: Generate) -> None:
    def full(module: torch.nn.Module, given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    hook = register_module_forward_pre_hook(full)
    try:
        code, out, err = generated("max_new_tokens=5")
    finally:
        hook.remove()
    assert code == 1
    assert out == ""
    for words in ("Out of memory", "Tried to allocate 2 GiB", "device=cpu", "max_new_tokens"):
        assert words in err
    assert "Traceback" not in err


def test_other_failures_keep_their_traceback(generated: Generate) -> None:
    def broken(module: torch.nn.Module, given: object) -> None:
        raise RuntimeError("shapes do not match")

    hook = register_module_forward_pre_hook(broken)
    try:
        with pytest.raises(RuntimeError, match="shapes"):
            generated()
    finally:
        hook.remove()
