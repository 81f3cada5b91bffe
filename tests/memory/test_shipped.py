"""The numbers that ship hold for as long as a step allocates what it did, and no longer."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmexp.memory import measure
from llmexp.memory.measure import Request
from llmexp.memory.setting import gpt2_config, make

CONTENT = json.loads(measure.SHIPPED.read_text()) if measure.SHIPPED.is_file() else {}
NEWER = "99.0"

pytestmark = pytest.mark.skipif(
    not CONTENT,
    reason="the numbers of the shipped plans are not measured: python -m llmexp.memory.ship",
)

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Let a package be of another version, in a world where nothing is cached yet."""
    forget()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)  # the process that traces looks there too

    def installed(name: str, version: str) -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")

    yield installed
    forget()


def forget() -> None:
    measure.stop()
    measure.versions.cache_clear()
    measure.shipped.cache_clear()
    measure.seen.clear()


def traced() -> bool:
    """Tell whether anything was traced since `forget`."""
    return bool(measure._worker.cache_info().currsize)


def link_transformers(folder: Path) -> Path:
    """Make a package transformers of links to the files of the real one."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    package = folder / "transformers"
    package.mkdir()
    for path in Path(spec.origin).parent.iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    return package


@pytest.mark.parametrize("version", CONTENT.get("versions", {}).get("transformers", []))
def test_they_hold_for_the_versions_that_were_tried(install: Install, version: str) -> None:
    install("torch", CONTENT["versions"]["torch"] + "+cu130")
    install("transformers", version)
    assert measure.shipped() == CONTENT["results"]
    assert not traced()


def test_another_torch_voids_them(install: Install) -> None:
    install("torch", NEWER)
    install("transformers", CONTENT["versions"]["transformers"][-1])
    assert measure.shipped() == {}
    assert not traced()


@pytest.mark.slow  # all four probes: 20 s
def test_a_transformers_that_allocates_the_same_keeps_them(
    install: Install, tmp_path: Path
) -> None:
    if not measure.shipped():
        pytest.skip(f"the numbers that ship do not hold for {measure.versions()}")
    forget()
    install("transformers", NEWER)
    path = link_transformers(tmp_path) / "pytorch_utils.py"
    text = path.read_text()
    path.unlink()
    path.write_text(text + "\nedited = True\n")
    assert measure.shipped() == CONTENT["results"]
    assert traced()
    forget()
    assert measure.shipped() == CONTENT["results"]
    assert not traced(), "once is enough"


def test_a_transformers_that_allocates_more_voids_them(install: Install, tmp_path: Path) -> None:
    install("transformers", NEWER)
    path = link_transformers(tmp_path) / "pytorch_utils.py"
    text = path.read_text()
    path.unlink()
    path.write_text(f"{text}\nold = Conv1D.forward\nConv1D.forward = lambda s, x: old(s, x * 1)\n")
    assert measure.shipped() == {}
    probe = measure.probes()[0]
    found = measure._cached(probe)
    assert found is not None
    assert found["allocated"] > CONTENT["results"][probe.key]["allocated"]


def test_the_models_that_do_not_ship_are_not_held_up(install: Install) -> None:
    install("transformers", NEWER)
    settings = {
        "optimizer": {"_target_": "torch.optim.AdamW", "fused": True},
        "data": {"pack": False, "max_length": 16},
    }
    config = {**gpt2_config({"n_layer": 2}, 0.0), "model_type": "another"}
    wanted = make(settings, config, precision="bf16", checkpointing=False)
    assert not measure._find(Request(wanted, 1, 1))
    assert not traced()
