"""llmexp: fine-tune causal language models on the GPU you own, and learn from the experiments."""

__version__ = "0.1.0"
