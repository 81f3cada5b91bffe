"""What the memory of a training step depends on, as a value: to trace, to cache, to compare.

Imports nothing heavy: with the numbers at hand a plan costs milliseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

# flash: Ampere and later, 16 bit, no mask; efficient: all others
Kernel = Literal["flash", "efficient"]

# of an optimizer's arguments, those that cost no memory
_FREE = ("lr", "betas", "eps", "beta2_decay", "d", "dampening", "maximize", "nesterov")
# of a model's config, those that do not change a training step
_NAMES = (
    *("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type"),
    *("task_specific_params", "use_cache", "initializer_range", "return_dict", "auto_map"),
)
_LAYERS = ("n_layer", "num_hidden_layers", "num_layers")


@dataclass(frozen=True)
class Setting:
    """What the memory of a step depends on, besides how many rows a micro-batch has."""

    config: Mapping[str, Any]  # of the model, as transformers writes it to config.json
    precision: str  # a name of llmexp/precision.py
    checkpointing: bool  # of activations, per block
    optimizer: Mapping[str, Any]  # `_target_` and the arguments that cost memory
    packed: bool  # several examples per row, kept apart by a mask
    length: int  # tokens per row
    layers: int | None = None  # instead of the model's own number

    @property
    def kernel(self) -> Kernel:
        """The attention kernel on a card of this precision: without bf16 there is no flash."""
        return "flash" if self.precision.startswith("bf16") else "efficient"

    def at(self, layers: int) -> Setting:
        """Return the same with another number of layers."""
        return replace(self, layers=layers)

    def key(self, *parts: object) -> str:
        """Return a name that is the same for the same setting, everywhere."""
        text = json.dumps([asdict(self), parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def make(
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    precision: str,
    checkpointing: bool,
) -> Setting:
    """Return the setting of a run's `settings`, for the model of `config`."""
    return Setting(
        config={key: config[key] for key in sorted(config) if key not in _NAMES},
        precision=precision,
        checkpointing=checkpointing,
        optimizer=_optimizer(settings["optimizer"]),
        packed=bool(settings["data"]["pack"]),
        length=int(settings["data"]["max_length"]),
    )


def gpt2_config(architecture: Mapping[str, int], dropout: float | None) -> dict[str, Any]:
    """Return the config of a GPT-2 of this architecture. Dropout counts only as on or off."""
    some = 0.1 if dropout is None or dropout > 0 else 0.0
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), some)
    return {"model_type": "gpt2", **architecture, **drops}


def layer_count(config: Mapping[str, Any]) -> int | None:
    """Return the number of layers, where all are alike and a few of them speak for the rest."""
    if len(set(config.get("layer_types") or [""])) > 1:
        return None
    return next((int(config[name]) for name in _LAYERS if name in config), None)


def _optimizer(node: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce an optimizer to what costs memory; of some numbers it is whether they are zero."""
    kept = {key: value for key, value in node.items() if key not in (*_FREE, "_partial_")}
    for key in ("weight_decay", "momentum"):
        if key in kept:
            kept[key] = 0.9 if kept[key] else 0.0
    return dict(sorted(kept.items()))
