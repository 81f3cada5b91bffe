"""CUDA's recording, for machines without a GPU: replaying computes the pass again."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from llmexp.gpu import graphs


class Stream:
    """A stream on which everything is done at once."""

    def wait_stream(self, other: Any) -> None: ...


class Recording:
    """Which graph is being recorded, and what passes do instead of the real one."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.current: Graph | None = None
        self.fails: list[tuple[int, Exception]] = []  # (pass, counted from 1, what it raises)
        self.passes = 0


class Graph:
    """Recording leaves gradients as they were; replaying adds to them."""

    recording: Recording

    def capture_begin(self, pool: Any) -> None:
        self.recording.current = self
        weights = self.recording.model.parameters()
        self.before = {w: w.grad.clone() for w in weights if w.grad is not None}

    def capture_end(self) -> None:
        self.recording.current = None
        for weight, gradient in self.before.items():
            assert weight.grad is not None
            weight.grad.copy_(gradient)

    def replay(self) -> None:
        arguments, loss = self.call
        loss.copy_(self.compute(*arguments))


def install(monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module) -> Recording:
    """Put the stand-in where llmexp/gpu/graphs.py looks for CUDA."""
    recording = Recording(model)
    compute = graphs.Graphs._pass

    def watched(*arguments: Any) -> torch.Tensor:
        recording.passes += 1
        for number, error in recording.fails:
            if number == recording.passes:
                raise error
        loss = compute(*arguments)
        if recording.current is not None:
            recording.current.call = arguments, loss
        return loss

    monkeypatch.setattr(graphs.Graphs, "_pass", watched)
    monkeypatch.setattr(Graph, "recording", recording, raising=False)
    monkeypatch.setattr(Graph, "compute", staticmethod(compute), raising=False)
    nothing = {name: lambda *_: None for name in ("synchronize", "empty_cache")}
    nothing |= {name: lambda *_: None for name in ("set_rng_state", "set_sync_debug_mode")}
    cuda: dict[str, Any] = {
        **nothing,
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda _: contextlib.nullcontext(),
        "graph_pool_handle": lambda: 0,
        "get_rng_state": lambda _: torch.get_rng_state(),
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    return recording
