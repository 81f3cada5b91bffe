"""The replayed allocator does what c10/cuda/CUDACachingAllocator.cpp does."""

from __future__ import annotations

import random

import pytest

from llmexp.memory import allocator
from llmexp.memory.allocator import MIB, Allocator, OutOfMemory, min_cap, replay


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),  # rounded to 512, from a small segment
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest small request
        (MIB + 1, MIB + 512, 20 * MIB),  # the smallest large one
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # from here on its own segment, in steps of 2 MiB
        (23 * MIB, 24 * MIB, 24 * MIB),
        (40_960_000, 41_943_040, 41_943_040),  # up to 1 MiB of rest is not split off
    ],
)
def test_a_request_takes_what_the_real_one_takes(size: int, allocated: int, reserved: int) -> None:
    state = replay([(1, size)])
    assert (state.peak_allocated, state.peak_reserved) == (allocated, reserved)


def test_small_requests_share_a_segment_and_large_ones_do_not_use_it() -> None:
    events = [(i, 512 * 1024) for i in range(4)]
    assert replay(events).reserved == 2 * MIB
    assert replay([*events, (9, 2 * MIB)]).reserved == 22 * MIB


def test_a_released_block_is_joined_with_its_free_neighbours() -> None:
    state = Allocator()
    for storage in range(4):
        state.allocate(storage, 5 * MIB)  # fills one segment of 20 MiB
    for storage in (0, 2, 1, 3):
        state.release(storage)
    state.allocate(9, 20 * MIB - 512)
    assert state.reserved == 20 * MIB


def test_the_best_fitting_block_is_taken_not_the_first() -> None:
    state = Allocator()
    state.allocate(1, 40 * MIB)
    state.allocate(2, 20 * MIB)
    state.release(1)
    state.release(2)
    state.allocate(3, 20 * MIB)
    state.allocate(4, 40 * MIB)
    assert state.reserved == 60 * MIB


def test_at_the_cap_free_segments_are_given_back_and_the_request_tried_again() -> None:
    events = [(1, 30 * MIB), (1, 0), (2, 40 * MIB)]
    state = replay(events, cap=40 * MIB)
    assert (state.retries, state.reserved) == (1, 40 * MIB)
    with pytest.raises(OutOfMemory):
        replay([(1, 30 * MIB), (2, 40 * MIB)], cap=60 * MIB)


def test_a_segment_that_is_partly_used_cannot_be_given_back() -> None:
    events = [(1, 9 * MIB), (2, 5 * MIB), (1, 0), (3, 40 * MIB)]  # the first two share 20 MiB
    with pytest.raises(OutOfMemory):
        replay(events, cap=55 * MIB)
    assert replay(events, cap=60 * MIB).reserved == 60 * MIB


def random_events(seed: int) -> list[tuple[int, int]]:
    numbers = random.Random(seed)
    events: list[tuple[int, int]] = []
    alive: list[int] = []
    for storage in range(300):
        events.append((storage, int(2 ** numbers.uniform(4, 26))))
        alive.append(storage)
        while alive and numbers.random() < 0.45:
            events.append((alive.pop(numbers.randrange(len(alive))), 0))
    return events


@pytest.mark.parametrize("seed", range(5))
def test_the_bookkeeping_is_closed(seed: int) -> None:
    events = random_events(seed)
    state = replay(events)
    sizes = dict[int, int]()
    for storage, size in events:
        if size:
            sizes[storage] = size
        else:
            state_size = sizes.pop(storage)
            assert state_size > 0
    assert state.allocated >= sum(sizes.values())
    assert state.peak_reserved >= state.peak_allocated >= state.allocated
    for storage in list(sizes):
        state.release(storage)
    assert state.allocated == 0
    state.empty_cache()
    assert state.reserved == 0, "all free blocks have been joined to whole segments"


@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_cap_works_and_lies_between_allocated_and_reserved(seed: int) -> None:
    events = random_events(seed)
    free, cap = replay(events), min_cap(events, resolution=MIB)
    assert free.peak_allocated <= cap <= free.peak_reserved
    assert allocator.fits(events, cap)
    assert not allocator.fits(events, free.peak_allocated - 512)
