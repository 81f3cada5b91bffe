"""Memory that runs out where nothing can be cut ends the run in words, with a checkpoint intact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmexp import checkpoint, job
from llmexp.errors import RunError
from llmexp.plan import composed
from llmexp.sweep.trial import NullTrial

WANTED = (
    *("model.architecture={n_layer:1,n_head:2,n_embd:16,n_positions:32,vocab_size:300}",),
    *("data=text", "data.path=lines.txt", "data.cache_dir=cache", "data.max_length=32"),
    *("samples.prompts=[]", "train.max_steps=6", "checkpoint.every_steps=2", "train.batch_size=4"),
    *("optimizer=sgd", "precision=fp32", "logger=none", "hw=cpu"),
)


def test_an_update_that_does_not_fit_ends_the_run_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("\n".join(f"line {n} of many" for n in range(40)))
    real, taken = torch.optim.SGD.step, []

    def step(*arguments: Any, **others: Any) -> Any:
        if len(taken) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 246.00 MiB.\nMore")
        taken.append(1)
        return real(*arguments, **others)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(RunError) as told:
        job.train(composed(WANTED), Path("run"), list(WANTED), NullTrial())
    assert "Out of memory after step 4" in str(told.value)
    assert "246.00 MiB" in str(told.value) and "More" not in str(told.value)
    assert "train.activation_checkpointing=true" in str(told.value), "what to try"
    last = sorted(Path("run/checkpoints").iterdir())[-1]
    assert checkpoint.peek(last).state["state"]["step"] == 4
