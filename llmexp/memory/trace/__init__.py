"""The training step on fake tensors: what a GPU would be asked for, with no GPU.

device      a GPU made of nothing: PyTorch follows its CUDA branches, no byte is allocated
autocast    CUDA's autocast rules on that device
attention   the attention kernel the target card would run, and what that kernel allocates itself
recorder    every allocation and release, in order, with what it is for
stand_in    what the engine trains on here
step        a model and two steps of the engine on that device
"""
