"""CUDA's autocast on the fake GPU: its lists of operators and its cache of cast weights.

Source of the lists and of the caching rule: aten/src/ATen/autocast_mode.h of PyTorch 2.13.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_map

_KEY = torch._C.DispatchKey.AutocastPrivateUse1  # type: ignore[attr-defined]

LOWER_PRECISION = (
    *("conv1d", "conv2d", "conv3d", "conv_tbc", "prelu", "addmm", "addmv", "addr", "matmul", "mm"),
    *("mv", "linalg_vecdot", "linear", "addbmm", "baddbmm", "bmm", "chain_matmul"),
    *("linalg_multi_dot", "scaled_dot_product_attention"),
)

FLOAT32 = (
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "sinh"),
    *("reciprocal", "rsqrt", "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar"),
    *("softplus", "layer_norm", "native_layer_norm", "rms_norm", "group_norm", "nll_loss"),
    *("cosine_similarity", "nll_loss2d", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss"),
    *("mse_loss", "binary_cross_entropy_with_logits", "dist", "cdist", "renorm", "logsumexp"),
)

# these get float32 through their own `dtype` argument: no copy of the input
FLOAT32_BY_DTYPE = (
    *("prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum"),
    *("linalg_vector_norm", "linalg_matrix_norm", "sum", "sum.dim_IntList"),
)

PROMOTE = (
    *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler"),
    *("index_put", "tensordot", "scatter_add"),
)

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
_libraries: list[torch.library.Library] = []
_casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
at_end: list[Callable[[], None]] = []  # called whenever an outermost autocast ends


def register() -> None:
    """Install the rules at the autocast key of the PrivateUse1 slot."""
    fallback = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    fallback.fallback(torch.library.fallthrough_kernel)
    kernels = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    rules: list[tuple[tuple[str, ...], Rule]] = [
        (LOWER_PRECISION, _lower_precision),
        (FLOAT32, _float32),
        (FLOAT32_BY_DTYPE, _float32_by_dtype),
        (PROMOTE, _promote),
    ]
    for names, rule in rules:
        for name in names:
            kernels.impl(name, _kernel(name, rule))
    _libraries.extend([fallback, kernels])  # they unregister when they are collected


@contextlib.contextmanager
def weight_cache() -> Iterator[None]:
    """Empty the cache of cast weights when PyTorch does: at the end of the outermost autocast."""
    clear = torch.clear_autocast_cache

    def clear_both() -> None:
        _casts.clear()
        clear()
        for call in at_end:
            call()

    torch.clear_autocast_cache = clear_both
    try:
        yield
    finally:
        torch.clear_autocast_cache = clear
        _casts.clear()
        at_end.clear()


def cached_casts() -> list[torch.Tensor]:
    """Return the low-precision copies of weights that autocast holds now."""
    return [copy for _, copy in _casts.values()]


def _kernel(name: str, rule: Rule) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
            return rule(op, args, kwargs)

    return kernel


def _lower_precision(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    dtype = torch.get_autocast_dtype("fakegpu")
    args, kwargs = tree_map(lambda value: _cast(value, dtype), (args, kwargs))
    return op(*args, **kwargs)


def _float32(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    args, kwargs = tree_map(lambda value: _cast(value, torch.float32), (args, kwargs))
    return op(*args, **kwargs)


def _float32_by_dtype(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _eligible(args[0]) and kwargs.get("dtype") is None and args[0].dtype != torch.float32:
        position = [argument.name for argument in op._schema.arguments].index("dtype")
        if position < len(args):
            args = (*args[:position], torch.float32, *args[position + 1 :])
        else:
            kwargs = {**kwargs, "dtype": torch.float32}
    return op(*args, **kwargs)


def _promote(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in (*args, *kwargs.values()) if _eligible(value)]
    if any(tensor.dtype == torch.float32 for tensor in tensors):
        return _float32(op, args, kwargs)
    return op(*args, **kwargs)


def _eligible(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.device.type == "fakegpu"
        and value.dtype != torch.float64
    )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast as `cached_cast` does: a float32 leaf with a gradient is cast once per autocast."""
    if not _eligible(value) or value.dtype == dtype:
        return value
    cacheable = (
        dtype == torch.get_autocast_dtype("fakegpu")
        and value.dtype == torch.float32
        and value.requires_grad
        and value.is_leaf
        and not value._is_view()
        and torch.is_autocast_cache_enabled()
    )
    if not cacheable:
        return value.to(dtype)
    if id(value) not in _casts:
        _casts[id(value)] = (value, value.to(dtype))
    return _casts[id(value)][1]
