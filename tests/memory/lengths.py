"""gpt2 on rows of many lengths, as real batches have, beside the two lengths of a plan."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from llmexp.memory import allocator
from llmexp.memory.setting import gpt2_config, make
from llmexp.memory.trace import stand_in, step

GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}


class Varied(stand_in.Batches):
    """Micro-batches of any length from 380 to 512 tokens."""

    numbers = random.Random(0)

    def micro_batches(self, micro_batch_size: int, /) -> Iterator[stand_in.Rows]:
        for _ in range(self.passes):
            length = self.numbers.randint(380, self.setting.length)
            yield stand_in.Rows.of(micro_batch_size, length, packed=self.setting.packed)


def main() -> None:
    settings: dict[str, Any] = {
        "optimizer": {"_target_": "torch.optim.AdamW", "fused": True},
        "data": {"pack": True, "max_length": 512},
    }
    setting = make(settings, gpt2_config(GPT2, 0.1), precision="bf16", checkpointing=False)
    planned = allocator.replay(step.trace(setting, stand_in.Batches(8, setting, 2)).events)
    varied = allocator.replay(step.trace(setting, Varied(8, setting, 2), steps=6).events)
    print(
        json.dumps(
            {
                "planned": planned.peak_reserved,
                "varied": varied.peak_reserved,
                "allocated": [planned.peak_allocated, varied.peak_allocated],
            }
        )
    )


if __name__ == "__main__":
    main()
