"""The examples of a step: a pure function of (seed, step), every token once per epoch."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llmexp.data import Batches, Corpus, Examples, MicroBatch, to_measure
from llmexp.data.mixing import Order
from llmexp.data.packing import REACH, best_fit, narrowed, one_per_row

Make = Callable[..., Corpus]


@pytest.fixture(params=["text", "masked", "block"])
def examples(request: pytest.FixtureRequest, corpus: Make, tmp_path: Path) -> Examples:
    """Some 150 examples of 2 to 24 inputs: whole, cut, with masks, or full blocks."""
    lines = [f"{number} " + "the learning rate " * (number % 9) for number in range(120)]
    if request.param == "masked":
        rows = "".join(f'{{"prompt": "{line}", "completion": "{line[:9]}"}}\n' for line in lines)
        (tmp_path / "data.jsonl").write_text(rows)
        return corpus("jsonl", path=str(tmp_path / "data.jsonl"), max_length=24).train
    (tmp_path / "data.txt").write_text("\n".join(lines))
    unit = "block" if request.param == "block" else "example"
    return corpus("text", path=str(tmp_path / "data.txt"), max_length=24, unit=unit).train


def micro_batches(batches: Batches, epoch: int, rows: int) -> Iterator[MicroBatch]:
    for step in range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch):
        yield from batches[step].micro_batches(rows)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_every_label_is_used_exactly_once_per_epoch(
    examples: Examples, pack: bool, rows: int
) -> None:
    expected: Counter[tuple[int, int, int, int]] = Counter()
    for number, example in enumerate(examples):
        ids, mask = example.input_ids.tolist(), example.loss_mask.tolist()
        for place in range(len(ids) - 1):
            if mask[place + 1]:
                expected[number, place, ids[place], ids[place + 1]] += 1
    batches = Batches(examples, batch_size=16, max_length=24, seed=3, pack=pack)
    for epoch in (0, 1):
        used: Counter[tuple[int, int, int, int]] = Counter()
        for batch in micro_batches(batches, epoch, rows):
            used.update(labels(batch))
        assert used == expected


def labels(batch: MicroBatch) -> Iterator[tuple[int, int, int, int]]:
    positions = batch.position_ids
    if positions is None:
        positions = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
    for row, column in (batch.targets != -100).nonzero().tolist():
        cell = (row, column)
        yield (
            int(batch.segments[cell]),
            int(positions[cell]),
            int(batch.input_ids[cell]),
            int(batch.targets[cell]),
        )


def test_a_batch_counts_what_it_holds(examples: Examples) -> None:
    batches = Batches(examples, batch_size=16, max_length=24)
    assert batches.steps_per_epoch == -(-len(examples) // 16)
    for step in range(batches.steps_per_epoch):
        batch = batches[step]
        made = list(batch.micro_batches(4))
        assert batch.examples == len(batch.indices) == len(set(batch.indices)) > 0
        assert batch.tokens == sum(int((part.segments >= 0).sum()) for part in made)
        assert batch.label_tokens == sum(int((part.targets != -100).sum()) for part in made)
        assert len(made) == -(-batch.row_count // 4)
        assert max(len(part.input_ids) for part in made) <= 4
        assert {part.input_ids.dtype for part in made} == {torch.int64}
        assert max(part.input_ids.shape[1] for part in made) <= 24
        assert set(batch.indices) == {
            number for part in made for number in part.segments.unique().tolist() if number >= 0
        }


def test_the_order_is_a_pure_function_of_seed_and_step(examples: Examples) -> None:
    def indices(step: int, seed: int = 1, **changes: Any) -> tuple[int, ...]:
        settings = {"batch_size": 16, "max_length": 24, **changes}
        return Batches(examples, seed=seed, **settings)[step].indices

    steps = Batches(examples, batch_size=16, max_length=24).steps_per_epoch
    once = Batches(examples, batch_size=16, max_length=24, seed=1)
    backwards = [once[step].indices for step in reversed(range(2 * steps))]
    assert backwards[::-1] == [indices(step) for step in range(2 * steps)]
    assert backwards[::-1] == [indices(step, pack=False) for step in range(2 * steps)]
    assert indices(0) != indices(steps) != indices(0, seed=2)
    assert indices(1, shuffle=False) == tuple(range(16, 32))


def test_a_smaller_batch_visits_the_same_order(examples: Examples) -> None:
    def order(batch_size: int) -> list[int]:
        batches = Batches(examples, batch_size=batch_size, max_length=24, seed=5)
        return [
            number for step in range(batches.steps_per_epoch) for number in batches[step].indices
        ]

    assert order(1) == order(16) == order(10_000)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97, 1000, 100_003])
def test_the_order_is_a_permutation(count: int) -> None:
    order = Order(count, "order", 7, 0)[np.arange(count)]
    assert np.array_equal(np.sort(order), np.arange(count))


def test_every_example_may_stand_at_every_place() -> None:
    epochs = 4000
    orders = np.array([Order(10, "order", 0, epoch)[np.arange(10)] for epoch in range(epochs)])
    for place in range(10):
        counts = np.bincount(orders[:, place], minlength=10)
        chi_squared = ((counts - epochs / 10) ** 2 / (epochs / 10)).sum()
        assert chi_squared < 35  # nine degrees of freedom: one in 17,000 by chance


def test_rows_hold_what_fits_and_are_as_few_as_can_be() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 101, size=int(rng.integers(1, 200)))
        rows = best_fit(lengths, 100)
        sums = [int(lengths[row].sum()) for row in rows]
        assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
        assert max(sums) <= 100
        assert sums == sorted(sums, reverse=True)
        assert len(rows) <= max(1, 11 / 9 * np.ceil(lengths.sum() / 100) + 1)  # Johnson's bound
    assert best_fit(np.array([60, 40, 50, 50, 100]), 100) == [[4], [0, 1], [2, 3]]
    assert best_fit(np.array([7, 5, 3, 3]), 10) == [[0, 2], [1, 3]]  # the tightest row first
    assert one_per_row(np.array([1, 3, 2])) == [[1], [2], [0]]


def work(lengths: Any, rows: list[list[int]], group: int) -> float:
    widths = [
        [lengths[row].sum() for row in rows[i : i + group]] for i in range(0, len(rows), group)
    ]
    return sum(len(part) * max(part) * (1 + max(part) / REACH) for part in widths)


def test_rows_are_as_short_as_the_passes_allow() -> None:
    rng = np.random.default_rng(0)
    for group in (1, 3, 8):
        for _ in range(30):
            lengths = rng.integers(1, 60, size=int(rng.integers(1, 100)))
            rows = best_fit(lengths, 512)
            shorter = narrowed(lengths, rows, capacity=512, group=group)
            assert sorted(item for row in shorter for item in row) == list(range(len(lengths)))
            assert -(-len(shorter) // group) == -(-len(rows) // group)
            assert lengths[shorter[0]].sum() <= lengths[rows[0]].sum()
            assert work(lengths, shorter, group) <= work(lengths, rows, group)
    assert narrowed(np.full(16, 17), [list(range(16))], capacity=512, group=8) == [
        [2 * row, 2 * row + 1] for row in range(8)
    ]


def test_packing_leaves_little_empty_on_lines(corpus: Make) -> None:
    train = corpus("sample", max_length=128).train
    batches = Batches(train, batch_size=64, max_length=128)
    filled = [batches[step] for step in range(batches.steps_per_epoch - 1)]
    assert sum(b.tokens for b in filled) / sum(128 * b.row_count for b in filled) > 0.9


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_what_is_only_measured_travels_in_full_passes(
    source: Any, tokenizer: Any, rows: int, tmp_path: Path
) -> None:
    lines = [f"{n} " + "the learning rate " * (n % 9) for n in range(4000)]
    (tmp_path / "data.txt").write_text("\n".join(lines))
    made = source("text", path=str(tmp_path / "data.txt"), max_length=256, val_size=0.3)
    examples = made.tokenize(tokenizer, cache_dir=tmp_path / "cache").validation
    batches = to_measure(examples, rows=rows, max_length=256, pack=True)
    full = [batches[number] for number in range(batches.steps_per_epoch - 1)]
    assert len(full) > 3
    passes = [one.input_ids.numel() for batch in full for one in batch.micro_batches(rows)]
    tokens = sum(batch.tokens for batch in full)
    assert max(passes) <= rows * 256
    assert tokens > 0.9 * sum(passes)  # little padding
    assert tokens > 0.6 * rows * 256 * len(passes)  # and passes that are about as large as can be
    assert to_measure(examples, rows=rows, max_length=256, pack=False)[0].examples == rows


def test_rows_of_one_example_need_no_positions(examples: Examples) -> None:
    batches = Batches(examples, batch_size=16, max_length=24, pack=False)
    assert all(part.position_ids is None for part in micro_batches(batches, 0, 4))


def test_micro_batches_and_packing_change_no_gradient(
    examples: Examples, gpt2: Callable[..., torch.nn.Module]
) -> None:
    model = gpt2(vocab_size=300)
    gradients = []
    for pack, rows in ((False, 64), (False, 1), (True, 64), (True, 1), (True, 3)):
        batch = Batches(examples, batch_size=16, max_length=24, pack=pack)[1]
        model.zero_grad()
        for part in batch.micro_batches(rows):
            logits = model(
                input_ids=part.input_ids, position_ids=part.position_ids, use_cache=False
            ).logits
            loss = F.cross_entropy(logits.flatten(0, 1), part.targets.flatten(), reduction="sum")
            (loss / batch.label_tokens).backward()
        grads = [weight.grad for weight in model.parameters()]
        gradients.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() < 1e-5 * gradients[0].norm()


def test_longer_rows_than_max_length_are_refused(examples: Examples) -> None:
    from llmexp.errors import RequestError

    with pytest.raises(RequestError, match="give Batches the max_length"):
        Batches(examples, batch_size=10_000, max_length=4)[0]


def test_a_batch_moves_to_a_device_whole(examples: Examples) -> None:
    for part in Batches(examples, batch_size=16, max_length=24)[0].micro_batches(4):
        moved = part.to("cpu")
        assert torch.equal(moved.input_ids, part.input_ids)
        assert (moved.position_ids is None) == (part.position_ids is None)
