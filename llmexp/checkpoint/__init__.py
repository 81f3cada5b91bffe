"""Checkpoints to continue a run from: safetensors, JSON, and a manifest with their SHA-256.

* store    save and load one
* shelf    the folder of them: verify, find the newest that is whole, prune
* tensors  model and optimizer to named tensors, and back (torch is imported for this only)
* resume   what may differ between a run and its continuation

    checkpoints/step-00000120/
      model.safetensors      the model's state_dict, tied tensors once
      optimizer.safetensors  state.<parameter number>.<name>
      state.json             step, caller's state, scaler, rest of the optimizer, environment
      manifest.json          size and SHA-256 of the three, written last

No pickle anywhere: reading a checkpoint can not run code.
"""

from llmexp.checkpoint.resume import config_differences, environment, environment_differences
from llmexp.checkpoint.shelf import SaveError, defect, find, newest, path_of, prune, remove_after
from llmexp.checkpoint.store import Saved, load, load_model, peek, save

__all__ = [
    "SaveError",
    "Saved",
    "config_differences",
    "defect",
    "environment",
    "environment_differences",
    "find",
    "load",
    "load_model",
    "newest",
    "path_of",
    "peek",
    "prune",
    "remove_after",
    "save",
]
