"""How much of the machine becomes training: the work is counted as torch counts it."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmexp.pace import Watched
from llmexp.peak import conditions, peak, place
from llmexp.precision import Precision
from llmexp.utilisation import Done, Utilisation, sizes, work_of

WIDE = {"n_embd": 128, "n_head": 4, "vocab_size": 500, "attn_implementation": "eager"}


def test_the_formula_counts_what_torch_counts(gpt2: Callable[..., Any]) -> None:
    model = gpt2(**WIDE)
    ids = torch.zeros(3, 64, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids).logits.sum().backward()
    done = Done(inputs=3 * 64, pairs=3 * 64 * 64, labels=3 * 64)
    # the formula also counts biases and norms, once per token
    assert work_of(model).of(done) == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_an_embedding_that_is_no_head_costs_nothing(gpt2: Callable[..., Any]) -> None:
    tied, untied = gpt2(**WIDE), gpt2(**WIDE, tie_word_embeddings=False)
    assert work_of(tied) == work_of(untied)


def test_rows_hold_tokens_and_examples_of_a_length() -> None:
    segments = torch.tensor([[0, 0, 0, 4, 4], [2, 2, 2, 2, -1], [7, -1, -1, -1, -1]])
    assert sizes(segments) == (10, 9 + 4 + 16 + 1)
    assert sizes(torch.full((2, 3), -1)) == (0, 0)


class Rows:
    """Batches of three rows each."""

    steps_per_epoch = 1
    label_tokens = 1
    indices = (0,)

    def __getitem__(self, step: int) -> "Rows":
        return self

    def micro_batches(self, size: int) -> Iterator[Any]:
        for first in range(0, 3, size):
            yield SimpleNamespace(segments=torch.zeros(min(size, 3 - first), 4, dtype=torch.int64))


def test_a_step_that_is_redone_counts_once() -> None:
    watched = Watched(Rows())
    for passed, _ in enumerate(watched[0].micro_batches(2)):
        if passed == 1:
            break  # memory ran out
    for _ in watched[0].micro_batches(1):
        pass
    assert (watched.inputs, watched.pairs) == (12, 48)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def precision() -> Precision:
    return Precision(name="fp32", tf32=False)


@pytest.mark.usefixtures("cache")
def test_the_share_is_work_over_peak_times_seconds(gpt2: Callable[..., Any]) -> None:
    model = gpt2()
    using = Utilisation(model, precision())
    reachable = peak(torch.device("cpu"), torch.float32, width=32)
    done = Done(inputs=100, pairs=2000, labels=90)
    seconds = 4 * work_of(model).of(done) / reachable
    assert using.share(done, seconds) == pytest.approx(0.25)
    assert math.isnan(using.share(done, 0.0))


@pytest.mark.usefixtures("cache")
def test_a_peak_of_a_busy_machine_is_measured_anew(gpt2: Callable[..., Any]) -> None:
    key = conditions(torch.device("cpu"), torch.float32, 32)
    true = peak(torch.device("cpu"), torch.float32, width=32)
    place(key).write_text(json.dumps(key | {"flops_per_second": true / 1000}))
    model = gpt2()
    using = Utilisation(model, precision())
    done = Done(inputs=100, pairs=2000, labels=90)
    assert using.share(done, 100 * work_of(model).of(done) / true) < 0.5
    assert json.loads(place(key).read_text())["flops_per_second"] > true / 100


@pytest.mark.usefixtures("cache")
def test_a_model_that_cannot_be_counted_has_no_share(gpt2: Callable[..., Any]) -> None:
    model = gpt2()
    model.config.num_experts = 8
    assert math.isnan(Utilisation(model, precision()).share(Done(1, 1, 1), 1.0))
    assert math.isnan(Utilisation(torch.nn.Linear(2, 2), precision()).share(Done(1, 1, 1), 1.0))
