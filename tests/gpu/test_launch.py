"""Graphs are launched where they fit, refused in words, and a run keeps to what it began with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from llmexp import gpu
from llmexp.errors import RequestError
from llmexp.memory import planner
from llmexp.plan import composed

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(scope="module")
def fits() -> Any:
    return planner.plan(composed(["model=gpt2-nano", "hw=6gb", "precision=bf16"]))


def why(fits: Any, wanted: bool | str = "auto", before: bool | None = None) -> str:
    return gpu._why_not(wanted, fits, CUDA, before=before)


def with_budget(fits: Any, factor: float) -> Any:
    gib = fits.prediction.total * factor / gpu.GIB
    return replace(fits, budget=replace(fits.budget, gib=gib))


def test_they_want_twice_the_memory(fits: Any) -> None:
    assert why(with_budget(fits, 2.01)) == ""
    assert "twice the memory" in why(with_budget(fits, 1.99))
    assert why(with_budget(fits, 1.99), wanted=True) == "", "a person may try"
    assert "not known" in why(replace(fits, prediction=None))


def test_a_run_keeps_to_what_it_began_with(fits: Any) -> None:
    tight, roomy = with_budget(fits, 1.5), with_budget(fits, 3)
    assert why(tight, before=True) == "" and why(roomy, before=False) == "as this run began"
    assert why(roomy, wanted=False, before=True) == "train.cuda_graphs=false"
    assert why(roomy, wanted=True, before=False) == ""


def test_what_cannot_be_is_refused_or_told(fits: Any) -> None:
    recomputing = replace(fits, activation_checkpointing=True)
    settings = {"train": {"cuda_graphs": True}, "data": {"max_length": 512}}
    with pytest.raises(RequestError, match="checkpointing cannot be recorded; use"):
        gpu.launch(settings, recomputing, CUDA)
    with pytest.raises(RequestError, match="no CUDA device here; use train.cuda_graphs=auto"):
        gpu.launch(settings, fits, CPU)
    settings["train"]["cuda_graphs"] = "auto"
    assert gpu.launch(settings, fits, CPU) == (None, "")
    assert gpu.launch(settings, recomputing, CUDA) == (
        None,
        "launch  kernel by kernel: activation checkpointing cannot be recorded",
    )
