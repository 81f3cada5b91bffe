"""What a start does early is only early: memory that is fetched is used, nothing else changes."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmexp import startup
from llmexp.cpu.weights import leave_file
from llmexp.memory import system

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}


def settings(
    weights: Path | str | None, architecture: dict[str, int] | None = GPT2, **changes: str
) -> dict[str, Any]:
    """Return as much of the settings as counts."""
    asked = {"device": "cpu", "precision": "auto", "optimizer": "torch.optim.AdamW"} | changes
    return {
        "hw": {"device": asked["device"]},
        "precision": {"name": asked["precision"]},
        "optimizer": {"_target_": asked["optimizer"]},
        "model": {"weights": weights, "architecture": architecture},
    }


def test_the_bytes_are_those_of_weights_gradients_and_moments(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "consolidated.safetensors").write_bytes(bytes(1000))  # the same weights again
    assert startup.bytes_of_state(settings(str(tmp_path))) == 4000
    assert startup.bytes_of_state(settings(str(tmp_path), optimizer="torch.optim.SGD")) == 2000
    fresh = startup.bytes_of_state(settings(None))
    assert fresh == pytest.approx(16 * 124_439_808, rel=1e-3)


@pytest.mark.parametrize("changes", [{"device": "cuda"}, {"precision": "bf16_parameters"}])
def test_what_does_not_lie_there_in_float32_is_not_fetched(changes: dict[str, str]) -> None:
    assert startup.bytes_of_state(settings(None, **changes)) == 0


def test_weights_in_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from llmexp import startup\n"
        f"print(startup._bytes_of_weights(dict(weights='some/model', architecture={GPT2})))"
    )

    def found() -> int:
        return int(subprocess.check_output([sys.executable, "-c", code]))

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert found() == 0
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(bytes(3000))
    assert found() == 3000


def test_weights_that_cannot_be_read_are_told_of_by_others(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    for weights in (str(tmp_path), str(tmp_path / "gone"), "no/such/model", "a b", "~nobody/x"):
        assert startup.bytes_of_state(settings(weights)) == 0


def test_no_more_than_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "available", lambda: 1000)
    assert startup.bytes_of_state(settings(None)) == 500
    monkeypatch.setattr(system, "available", lambda: None)
    assert startup.bytes_of_state(settings(None)) == 0


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
def test_weights_leave_their_file(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_head=1, n_embd=32, n_positions=32, vocab_size=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    weights = str(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(weights)
    assert weights in Path("/proc/self/maps").read_text()  # else there is nothing to leave
    leave_file(model)
    assert weights not in Path("/proc/self/maps").read_text()
    assert model.transformer.wte.weight is model.lm_head.weight


READ = """
import sys
from collections import Counter

opened = Counter()
sys.addaudithook(lambda event, given: opened.update([str(given[0])]) if event == "open" else None)
{how}
import transformers.models
from transformers.utils import import_utils as reader

models = sys.modules["transformers.models"]
print(opened[models.__file__.replace("__init__", "llama/modeling_llama")])
print(sorted(models._class_to_module.items()), sorted(models._object_missing_backend.items()))
print(reader.define_import_structure.__module__, transformers.models.gpt2.GPT2Config.__module__)
"""


def test_transformers_finds_the_same_models_in_one_reading_of_its_files() -> None:
    def read(how: str) -> list[str]:
        words = [sys.executable, "-c", READ.format(how=how)]
        environment = os.environ | {"PYTHONHASHSEED": "0"}  # the order of sets
        return subprocess.check_output(words, text=True, env=environment).splitlines()

    times, *found = read("from llmexp import startup; startup.import_transformers()")
    _, *expected = read("import transformers")
    assert found == expected
    assert times == "1"


def test_a_version_that_reads_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import import_utils

    monkeypatch.delattr(import_utils, "define_import_structure")
    startup.import_transformers()
    assert not hasattr(import_utils, "define_import_structure")
