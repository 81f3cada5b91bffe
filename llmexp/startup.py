"""From the command to the first step: what importing the libraries costs, and what is done
meanwhile.

Most of a start is Python reading PyTorch's and transformers' modules, on one core.
"""

import gc
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmexp.memory import cpu, system


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without the garbage collector: it would look through all modules again and again,
    and find none to be garbage. Afterwards it leaves alone what is there."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_transformers() -> None:
    """Import transformers and the list of its models, 0.3 s sooner: it reads the files of its
    models, 1,700 in 5.24, for the names in them, and then again to list them, by another path."""
    import transformers
    from transformers.utils import import_utils as reader

    models = Path(transformers.__file__).parent / "models"
    try:
        read = reader.define_import_structure
        names = _names_of_models(read(models, prefix="models"))  # it keeps what it was asked before
    except (AttributeError, TypeError):  # a version that does it otherwise
        return

    def told(*given: Any, **options: Any) -> Any:
        if given == (str(models / "__init__.py"),) and not options:
            return names
        return read(*given, **options)

    reader.define_import_structure = told
    try:
        importlib.import_module("transformers.models")
    finally:
        reader.define_import_structure = read


def _names_of_models(structure: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Return what `transformers.models` consists of, from what `transformers` does: both by what
    they need to be installed, and by module."""
    start = "models."
    return {
        needs: {
            module.removeprefix(start): names
            for module, names in modules.items()
            if module.startswith(start)
        }
        for needs, modules in structure.items()
    }


def bytes_of_state(settings: Mapping[str, Any]) -> int:
    """Return the bytes that weights, gradients and moments will take on a CPU, as far as that is
    known before transformers is imported; at most half of what is free, 0 on a GPU."""
    import torch

    device = settings["hw"]["device"]
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return 0
    if settings["precision"]["name"] == "bf16_parameters":
        return 0
    copies = 4 if settings["optimizer"]["_target_"] == "torch.optim.AdamW" else 2
    return min(copies * _bytes_of_weights(settings["model"]), (system.available() or 0) // 2)


def _bytes_of_weights(model: Mapping[str, Any]) -> int:
    """Return the bytes of the weights of conf/model, 0 where they are yet to be fetched."""
    if model["weights"] is None:
        return cpu.bytes_of_weights(model["architecture"]) if model["architecture"] else 0
    try:
        folder = Path(model["weights"]).expanduser()
        if not folder.is_dir():
            folder = _cached(model["weights"])
        return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    except OSError:  # llmexp/model.py says what is wrong with them
        return 0


def _cached(name: str) -> Path:
    """Return the folder in which the hub's cache keeps a model. Raises FileNotFoundError."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        config = None
    if not isinstance(config, str):
        raise FileNotFoundError(name)
    return Path(config).parent
