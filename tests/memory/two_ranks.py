"""One of two ranks runs out of memory: both retry, at the same size. Prints rank 0's sizes."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass

import torch
from torch import distributed, nn

from llmexp.memory import oom


@dataclass
class Plan:
    micro_batch_size: int = 8
    seed: int = 7


def main() -> None:
    distributed.init_process_group("gloo")
    rank, plan, sizes = distributed.get_rank(), Plan(), []
    for attempt in oom.attempts(nn.Linear(2, 2), plan, 0):
        with attempt:
            sizes.append(plan.micro_batch_size)
            if rank == 1 and plan.micro_batch_size > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
    gathered: list[list[int]] = [[], []]
    distributed.all_gather_object(gathered, sizes)
    if rank == 0:
        print(json.dumps(gathered))
    distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
