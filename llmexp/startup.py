"""From the command to the first step: what importing the libraries costs, and what is done
meanwhile.

Two of three seconds of a start are Python reading PyTorch's and transformers' modules, on one core.
"""

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmexp.memory import cpu, system

# of mallopt(3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER = -1
PAD = 64 << 20  # bytes by which the heap grows at least
WORTH = 64 << 20  # bytes; less is touched in no time


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


def keep_freed_blocks() -> bool:
    """Tell glibc not to return large freed blocks to the system; say whether it was told.

    By default each block above 32 MiB is mapped anew, and the kernel zeroes its pages: at GPT-2's
    size a fifth of the step. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: PAD}
    return all([mallopt(option, value) for option, value in wanted.items()])


def touch(size: int) -> threading.Thread | None:
    """Let another thread write on `size` bytes of the heap and free them for the run to come;
    return it, None where that is not worth it or glibc would not keep them.

    The kernel zeroes a page when it is first written on, which for the weights, gradients and
    moments of GPT-2 takes over a second of the first step.
    """
    if size < WORTH or not keep_freed_blocks():
        return None
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    block = library.malloc(size)  # by this thread: others have heaps of their own
    if not block:
        return None

    def write() -> None:
        ctypes.memset(block, 0, size)  # lets go of Python's lock
        library.free(block)

    thread = threading.Thread(target=write, name="touch", daemon=True)
    thread.start()
    return thread


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
