"""How a run fits: predicted without a GPU, planned, and out-of-memory errors survived.

budget      how many bytes a card really offers the allocator
trace/      the training step on fake tensors: what is allocated, when, and for what
allocator   what the caching allocator makes of it: reserved bytes, and the smallest cap that works
formula     the traced peaks as a closed form in (layers, tokens)
rungs       what changes numerics, and is taken only if train.allow names it
planner     the first way to train that fits: micro-batch, accumulation, activation checkpointing
cpu         the micro-batch where there is no GPU
system      the memory that this process can have
oom         an out-of-memory error inside an optimizer step, survived with the same result
"""
