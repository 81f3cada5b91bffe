"""A GPU made of nothing: PyTorch takes its accelerator branches on it and allocates no byte.

`FakeTensorMode` with device "cuda" does not work on a CPU-only build of PyTorch: copies and the
autograd engine ask for a CUDA device guard that is not there. The PrivateUse1 slot, which PyTorch
keeps for backends it does not know, can be filled from Python instead. Registration cannot be
undone, so traces run in a process of their own (llmexp/memory/trace/__main__.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from llmexp.memory.setting import Kernel
from llmexp.memory.trace import attention, autocast

NAME = "fakegpu"
aten = torch.ops.aten
_registered = False


class _Module:
    """The functions PyTorch asks `torch.<backend>` for."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """There are no random numbers here."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


class FakeGpuMode(FakeTensorMode):
    """Fake tensors that never look for a real accelerator and answer every question about values.

    A number read back (`.item()`) from the GPU is zero, as the overflows that a GradScaler counts;
    one from the CPU is one, as the steps that an optimizer counts; a truth value is true: finite,
    not masked. Where the number of rows depends on values (a mask), all rows are taken: the most
    memory that can be needed.
    """

    @property
    def avoid_device_init(self) -> bool:
        return True

    def dispatch(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return _scalar(args[0])
        if func in (aten._fused_sgd_.default, aten._fused_sgd_.tensor_lr):  # it has no meta kernel
            return None
        if func is aten.nonzero.default:
            return self._all_indices(args[0])
        if func is aten.masked_select.default:
            with self:
                return args[0].new_empty(args[0].numel())
        if func is aten.index.Tensor and _has_mask(args[1]):
            with self:
                return aten.index.Tensor(args[0], self._expand_masks(args[1]))
        if func is aten.scaled_dot_product_attention.default:  # without autograd
            with self:
                return attention.scaled_dot_product_attention(*args, **kwargs)
        return super().dispatch(func, types, args, kwargs)

    def _all_indices(self, mask: torch.Tensor) -> torch.Tensor:
        with self:
            return torch.empty((mask.numel(), mask.dim()), dtype=torch.int64, device=mask.device)

    def _expand_masks(self, indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        expanded: list[torch.Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                expanded += self._all_indices(index).unbind(1)
            else:
                expanded.append(index)
        return expanded


def _scalar(tensor: torch.Tensor) -> bool | int | float:
    if tensor.dtype is torch.bool:
        return True
    if not tensor.is_floating_point():
        return 1
    return 0.0 if tensor.device.type == NAME else 1.0


def _has_mask(indices: Sequence[torch.Tensor | None]) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


@contextlib.contextmanager
def fake_gpu(kernel: Kernel = "flash") -> Iterator[torch.device]:
    """Enter the fake GPU, yield its device; attention takes `kernel` as the target card would."""
    _register()
    with attention.using(kernel), autocast.weight_cache(), FakeGpuMode():
        yield torch.device(NAME, 0)


def _register() -> None:
    """Fill the PrivateUse1 slot, once per process."""
    global _registered
    if _registered:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    autocast.register()
    attention.register()
    _registered = True
