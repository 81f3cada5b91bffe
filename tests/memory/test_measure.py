"""Whatever a cache holds, a plan has the numbers of a trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmexp.memory import measure
from llmexp.memory.measure import Request, Result
from llmexp.memory.setting import gpt2_config, make

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 128, "vocab_size": 512}
DAMAGED = (
    *("", "no json", "null", "[]", "7", "{}", '{"peaks": {}}', '{"peaks": []}'),
    *('{"peaks": {"forward": "much"}}', '{"peaks": {"forward": 1}, "parts": {}}'),
    '{"peaks": {"forward": 1}, "parts": {"weights": 1}, "allocated": 1, "reserved": 1}',
)


def wanted() -> Request:
    settings = {
        "optimizer": {"_target_": "torch.optim.AdamW", "fused": True},
        "data": {"pack": False, "max_length": 16},
    }
    made = make(settings, gpt2_config(TINY, 0.0), precision="bf16", checkpointing=False)
    return Request(made, 1, 1)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(measure, "shipped", dict)
    measure.seen.clear()
    yield
    measure.seen.clear()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Result]]:
    """Return the file of a cached result, and the result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "shipped", dict)
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        (result,) = measure.measure([wanted()])
        (path,) = folder.rglob("*.json")
        yield path, result
    measure.stop()


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_cache_is_mended(kept: tuple[Path, Result], content: str) -> None:
    path, result = kept
    whole = path.read_text()
    path.write_text(content)
    assert measure.measure([wanted()]) == [result]
    assert path.read_text() == whole


def test_what_is_kept_is_not_traced_again(
    kept: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "trace", pytest.fail)
    assert measure.measure([wanted()]) == [kept[1]]


def test_a_cache_that_cannot_be_written_costs_only_time(
    kept: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measure.measure([wanted()]) == [kept[1]]
