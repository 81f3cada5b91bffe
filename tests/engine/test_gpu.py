"""What only a GPU can show: a step that never waits for it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from llmexp import engine, optimizer
from llmexp.loss import Probe, probe_head
from llmexp.precision import Precision

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


class Step:
    """One optimizer step of one micro-batch that lies on the GPU already."""

    label_tokens = 40

    def __init__(self, device: torch.device) -> None:
        ids = torch.randint(0, 96, (2, 20), device=device)
        self.rows = Probe(ids, ids, None)
        self.labels = self.rows.labels

    def micro_batches(self, micro_batch_size: int, /) -> Any:
        rows = self.rows

        class Ready:
            input_ids, targets, position_ids, labels = (
                rows.input_ids,
                rows.targets,
                None,
                self.labels,
            )

            def to(self, device: torch.device, /) -> Any:
                return self

        yield Ready()


def test_a_step_never_waits_for_the_gpu(gpt2: Callable[..., Any]) -> None:
    device = torch.device("cuda")
    model = gpt2().to(device)
    probe_head(model)
    adam = optimizer.build(model, partial(torch.optim.AdamW, lr=1e-3, fused=True))
    precision = Precision(name="auto", tf32=False).choose(device)
    batch = Step(device)
    for mode in ("default", "error"):  # the first step may allocate and compile
        torch.cuda.set_sync_debug_mode(mode)
        loss = engine.accumulate(model, batch, precision, 8)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step_if_finite(adam, precision.scaler, loss + norm)
        adam.zero_grad(set_to_none=True)
    torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)
