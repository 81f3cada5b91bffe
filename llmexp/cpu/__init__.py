"""A training step on a CPU: the same numbers in less time and less memory.

* dropout     random numbers 64 bits at a time, and no mask kept for backward
* attention   with dropout, over packed rows and in bf16, a tile of the [T, T] scores at a time
* perceptron  GPT-2's GELU without a tanh; what it gives is not kept for backward
* weights     leave the file that they were read from
* moments     those of AdamW lie side by side

What concerns the heap as a whole is in llmexp/heap.py.
"""

from torch import nn

from llmexp.cpu import attention, dropout, moments, perceptron, weights

__all__ = ["moments", "speed_up", "weights"]


def speed_up(model: nn.Module) -> None:
    """Let `model` use the dropout, the attention and the perceptron of this package, in place."""
    dropout.replace(model)
    attention.install(model)
    perceptron.install(model)
