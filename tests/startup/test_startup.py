"""What a start does early is only early: memory that is fetched is used, nothing else changes."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmexp import startup
from llmexp.config import call
from llmexp.memory import cpu

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not startup.keep_freed_blocks(),
    reason="another C library keeps its memory as it likes",
)
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
SIZE = 256 << 20


def ask(code: str) -> list[int]:
    """Return the numbers that a fresh process prints."""
    command = [sys.executable, "-c", f"import resource, torch\nSIZE = {SIZE}\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


FAULTS = """
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def used():
    before = faults()
    kept = [torch.ones(SIZE // 16) for _ in range(4)]  # all of it, in float32
    print(faults() - before)
"""


@linux
def test_what_was_touched_is_what_tensors_get() -> None:
    untouched = ask(FAULTS + "used()")
    touched = ask(f"from llmexp import startup{FAULTS}startup.touch(SIZE).join(); used()")
    pages = SIZE // 4096
    assert untouched[0] > 0.9 * pages  # else pages are larger here, and this says nothing
    assert touched[0] < 0.1 * pages


@linux
def test_it_is_taken_once() -> None:
    code = "from llmexp import startup; startup.touch(SIZE).join()\n" + FAULTS
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024"
    first, _, last = ask(f"{code}print({peak}); used(); print({peak})")
    assert last - first < 0.1 * SIZE


def test_little_is_not_worth_a_thread() -> None:
    assert startup.touch(startup.WORTH - 1) is None


@linux
def test_more_than_there_is_is_left() -> None:
    assert startup.touch(1 << 60) is None


def settings(weights: Path | str | None, architecture: dict[str, int] | None) -> dict[str, Any]:
    """Return as much of the settings as counts."""
    return {"model": {"weights": weights, "architecture": architecture}}


def test_the_bytes_are_those_of_the_weights_four_times(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    assert startup.bytes_of_state(settings(str(tmp_path), GPT2)) == 4000
    by_shape = startup.bytes_of_state(settings("openai-community/gpt2", GPT2))
    assert by_shape == pytest.approx(16 * 124_439_808, rel=1e-3)
    assert startup.bytes_of_state(settings(None, GPT2)) == by_shape
    assert startup.bytes_of_state(settings("Qwen/Qwen3-0.6B", None)) == 0


def test_no_more_than_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available", lambda: 1000)
    assert startup.bytes_of_state(settings(None, GPT2)) == 500
    monkeypatch.setattr(cpu, "available", lambda: None)
    assert startup.bytes_of_state(settings(None, GPT2)) == 0


def test_the_collector_works_again_and_leaves_alone_what_was_imported() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(KeyError), startup.uncollected():
        assert not gc.isenabled()
        made = [[i] for i in range(1000)]
        raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)
    gc.unfreeze()


@linux
def test_a_model_on_a_cpu_does_not_lie_in_its_file(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_head=1, n_embd=32, n_positions=32, vocab_size=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    blueprint = call(
        {
            "_target_": "llmexp.model.Model",
            "name": "gpt2",
            "weights": str(tmp_path),
            "tokenizer": None,
            "architecture": None,
            "dropout": None,
            "lr": 1e-3,
        }
    )
    model = blueprint.build(blueprint.config(), range(64), device=torch.device("cpu"))
    mapped = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line
    ]
    assert mapped == []
    assert model.transformer.wte.weight is model.lm_head.weight
