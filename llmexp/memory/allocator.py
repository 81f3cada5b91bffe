"""PyTorch's caching CUDA allocator, replayed: what a recorded sequence of allocations reserves.

Source: c10/cuda/CUDACachingAllocator.cpp of PyTorch 2.13, the native allocator on one stream with
its default settings. Requests are rounded to 512 bytes and served by the best fitting free block of
the small (up to 1 MiB) or the large pool; what is left of a block is split off if it is worth it.
Where nothing fits a new segment is taken from the card; where the cap forbids it, every segment
that is wholly free is given back first (a retry, in PyTorch's statistics).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MIB = 2**20
MIN_BLOCK = 512
SMALL_SIZE = 1 * MIB  # the largest request of the small pool
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB  # taken for requests below MIN_LARGE
MIN_LARGE = 10 * MIB
ROUND_LARGE = 2 * MIB

Events = Sequence[tuple[int, int]]  # (storage, bytes), bytes 0 for a release: Recording.events


class OutOfMemory(Exception):
    """The replay needs more than the cap."""


@dataclass(eq=False)
class _Block:
    size: int
    address: int
    small: bool
    free: bool = False
    previous: _Block | None = None
    following: _Block | None = None

    @property
    def is_segment(self) -> bool:
        return self.previous is None and self.following is None


@dataclass
class Allocator:
    """The state of the allocator, in bytes. `cap`: what set_per_process_memory_fraction allows."""

    cap: int | None = None
    allocated: int = 0
    reserved: int = 0
    peak_allocated: int = 0
    peak_reserved: int = 0
    retries: int = 0
    _next_address: int = 0
    _free: dict[bool, list[tuple[int, int, _Block]]] = field(
        default_factory=lambda: {True: [], False: []}
    )
    _used: dict[int, _Block] = field(default_factory=dict)

    def allocate(self, storage: int, size: int) -> None:
        """Serve a request of `size` bytes, known as `storage`. Raises OutOfMemory."""
        size = max(MIN_BLOCK, -(-size // MIN_BLOCK) * MIN_BLOCK)
        small = size <= SMALL_SIZE
        block = self._best_fit(size, small=small) or self._new_segment(size, small=small)
        rest = block.size - size
        if rest >= MIN_BLOCK if small else rest > SMALL_SIZE:
            self._split(block, size)
        self._used[storage] = block
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)

    def release(self, storage: int) -> None:
        """Give a block back to its pool, joined with its free neighbours."""
        block = self._used.pop(storage)
        self.allocated -= block.size
        for neighbour in (block.previous, block.following):
            if neighbour is not None and neighbour.free:
                self._take(neighbour)
                self._join(block, neighbour)
        self._put(block)

    def empty_cache(self) -> None:
        """Give every wholly free segment back to the card."""
        for pool in self._free.values():
            segments = [entry for entry in pool if entry[2].is_segment]
            for entry in segments:
                pool.remove(entry)
                self.reserved -= entry[2].size

    def _best_fit(self, size: int, *, small: bool) -> _Block | None:
        pool = self._free[small]
        index = bisect_left(pool, (size, -1))
        if index == len(pool):
            return None
        block = pool.pop(index)[2]
        block.free = False
        return block

    def _new_segment(self, size: int, *, small: bool) -> _Block:
        if small:
            taken = SMALL_SEGMENT
        elif size < MIN_LARGE:
            taken = LARGE_SEGMENT
        else:
            taken = -(-size // ROUND_LARGE) * ROUND_LARGE
        if self.cap is not None and self.reserved + taken > self.cap:
            self.retries += 1
            self.empty_cache()
            if self.reserved + taken > self.cap:
                raise OutOfMemory(f"{taken} bytes on top of {self.reserved}, cap {self.cap}")
        self.reserved += taken
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        block = _Block(taken, self._next_address, small)
        self._next_address += taken
        return block

    def _split(self, block: _Block, size: int) -> None:
        rest = _Block(block.size - size, block.address + size, block.small)
        rest.previous, rest.following = block, block.following
        if block.following is not None:
            block.following.previous = rest
        block.size, block.following = size, rest
        self._put(rest)

    def _join(self, block: _Block, neighbour: _Block) -> None:
        if neighbour is block.previous:
            block.address, block.previous = neighbour.address, neighbour.previous
            if block.previous is not None:
                block.previous.following = block
        else:
            block.following = neighbour.following
            if block.following is not None:
                block.following.previous = block
        block.size += neighbour.size

    def _put(self, block: _Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.size, block.address, block))

    def _take(self, block: _Block) -> None:
        pool = self._free[block.small]
        del pool[bisect_left(pool, (block.size, block.address))]
        block.free = False


def replay(events: Iterable[tuple[int, int]], cap: int | None = None) -> Allocator:
    """Run recorded allocations through a fresh allocator. Raises OutOfMemory above `cap` bytes."""
    allocator = Allocator(cap)
    for storage, size in events:
        if size:
            allocator.allocate(storage, size)
        else:
            allocator.release(storage)
    return allocator


def fits(events: Events, cap: int) -> bool:
    """Tell whether the recorded allocations run under `cap` bytes, retries allowed."""
    try:
        replay(events, cap)
    except OutOfMemory:
        return False
    return True


def min_cap(events: Events, resolution: int = 4 * MIB) -> int:
    """Return the smallest cap, to `resolution` bytes, under which the allocations still run."""
    free = replay(events)
    low, high = free.peak_allocated - 1, free.peak_reserved
    while high - low > resolution:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(events, middle) else (middle, high)
    return high
