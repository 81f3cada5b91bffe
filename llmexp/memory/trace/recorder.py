"""Every allocation and release on one device, in order, with what it is for."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmexp.memory.trace import attention

BLOCK = 512  # bytes: the allocator rounds every request up to a multiple (c10 kMinBlockSize)


def rounded(size: int) -> int:
    """Return the bytes the allocator takes for a request of `size` bytes."""
    return -(-size // BLOCK) * BLOCK


@dataclass
class Recording:
    """The allocations of a run: `events` are (storage, bytes) with bytes 0 for a release.

    `marks` name positions in `events` (the start of a phase); `kinds` say what a storage is for.
    """

    events: list[tuple[int, int]] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)
    kinds: dict[int, str] = field(default_factory=dict)

    def peak(self) -> int:
        """Return the largest sum of live bytes."""
        return max(self.peaks().values(), default=0)

    def peaks(self) -> dict[str, int]:
        """Return the largest sum of live bytes within each phase; a repeated name is one phase."""
        peaks: dict[str, int] = {}
        live, sizes, name = 0, dict[int, int](), ""
        marks = iter([*self.marks, (len(self.events), "")])
        at, following = next(marks)
        for position, (storage, size) in enumerate(self.events):
            while position == at:
                name, (at, following) = following, next(marks)
                peaks[name] = max(peaks.get(name, 0), live)
            live += size if size else -sizes[storage]
            sizes[storage] = size
            peaks[name] = max(peaks.get(name, 0), live)
        return peaks

    def at_peak(self) -> dict[str, int]:
        """Return the live bytes of each kind at the moment of the highest sum."""
        target, live, sizes = self.peak(), 0, dict[int, int]()
        for storage, size in self.events:
            live += size if size else -sizes[storage]
            if size:
                sizes[storage] = size
            else:
                del sizes[storage]
            if live == target:
                break
        parts: dict[str, int] = {}
        for storage, size in sizes.items():
            kind = self.kinds[storage]
            parts[kind] = parts.get(kind, 0) + size
        return parts


class Recorder(TorchDispatchMode):
    """Records the storages that operators create on `device`, and their end. Sizes are rounded.

    With a `cap` in bytes an allocation above it raises the error of a full card.
    """

    def __init__(self, device: torch.device, *, cap: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.recording = Recording()
        self.live = 0
        self.cap = cap
        self._kind = "activations"
        self._count = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and leaf.device == self.device:
                self._see(leaf)
        self.pulse(attention.kernel_temporaries(func, tuple(args)))
        return output

    def mark(self, phase: str, *, kind: str = "activations") -> None:
        """Begin the phase `phase` here; what it allocates is of `kind` until it is named."""
        self._kind = kind
        self.recording.marks.append((len(self.recording.events), phase))

    def name(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Say what these tensors are for."""
        for tensor in tensors:
            self._see(tensor)
            self.recording.kinds[self._known[tensor.untyped_storage()]] = kind

    def pulse(self, sizes: Sequence[int]) -> None:
        """Record memory that is taken together and given back at once."""
        for ident, size in [(self._allocate(size), size) for size in sizes]:
            self._release(ident, rounded(size))

    def hold(self, size: int, kind: str) -> None:
        """Record memory that is taken once and stays."""
        ident = self._allocate(size)
        self.recording.kinds[ident] = kind

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if size == 0 or storage in self._known:
            return
        ident = self._allocate(size)
        self._known[storage] = ident
        weakref.finalize(storage, self._release, ident, rounded(size)).atexit = False

    def _allocate(self, size: int) -> int:
        if self.cap is not None and self.live + rounded(size) > self.cap:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
        self._count += 1
        self.recording.kinds[self._count] = self._kind
        self.live += rounded(size)
        self.recording.events.append((self._count, rounded(size)))
        return self._count

    def _release(self, ident: int, size: int) -> None:
        self.live -= size
        self.recording.events.append((ident, 0))
