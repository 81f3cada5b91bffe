"""The peak of the machine: measured once, kept, and never a reason to fail."""

import json
import math
from pathlib import Path

import pytest
import torch

from llmexp.peak import conditions, peak, place

CPU = torch.device("cpu")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the peak of 32 wide float32 products will be kept: in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return place(conditions(CPU, torch.float32, 32))


def test_it_is_measured_once_and_kept(kept: Path) -> None:
    found = peak(CPU, torch.float32, width=32)
    assert found > 1e6
    assert json.loads(kept.read_text())["flops_per_second"] == found
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"flops_per_second": 5.0}))
    assert peak(CPU, torch.float32, width=32) == 5.0
    assert peak(CPU, torch.float32, width=32, anew=True) > 1e6
    assert peak(CPU, torch.float32, width=32) > 1e6


def test_other_conditions_are_measured_apart(kept: Path) -> None:
    places = {
        place(conditions(CPU, torch.float32, 32)),
        place(conditions(CPU, torch.bfloat16, 32)),
        place(conditions(CPU, torch.float32, 64)),
        place(conditions(CPU, torch.float32, 32) | {"threads": 77}),
        place(conditions(CPU, torch.float32, 32) | {"torch": "1.0"}),
    }
    assert len(places) == 5


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "\udcff",
        '{"flops_per_second": 5.0}',
        *(f'"flops_per_second": {v}' for v in ("-1.0", "0.0", "NaN", "Infinity", '"5"', "null")),
    ],
)
def test_a_damaged_file_is_measured_again(kept: Path, damage: str) -> None:
    kept.parent.mkdir(parents=True)
    if damage.startswith('"'):  # all else in the file is right
        key = json.dumps(conditions(CPU, torch.float32, 32))
        damage = f"{key[:-1]}, {damage}}}"
    kept.write_bytes(damage.encode(errors="surrogateescape"))
    found = peak(CPU, torch.float32, width=32)
    assert found > 1e6
    assert json.loads(kept.read_text())["flops_per_second"] == found


def test_a_cache_that_cannot_be_written_is_no_error(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way, also of root")
    assert peak(CPU, torch.float32, width=32) > 1e6


def test_the_random_state_stays_as_it_is(kept: Path) -> None:
    before = torch.get_rng_state()
    peak(CPU, torch.float32, width=32)
    assert torch.equal(before, torch.get_rng_state())


def test_what_cannot_be_measured_is_not_known(kept: Path) -> None:
    assert math.isnan(peak(torch.device("meta"), torch.float32, width=32))
    assert math.isnan(peak(CPU, torch.float32, width=-1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_has_a_peak_and_keeps_its_random_state(kept: Path) -> None:
    device = torch.device("cuda")
    before = torch.cuda.get_rng_state()
    assert peak(device, torch.bfloat16, width=768) > peak(CPU, torch.float32, width=768)
    assert torch.equal(before, torch.cuda.get_rng_state())
