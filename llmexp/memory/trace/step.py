"""A model and two optimizer steps of the engine on the fake GPU: the same code that trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmexp import loss, model
from llmexp import model_family as family
from llmexp.memory.setting import Setting
from llmexp.memory.trace import autocast
from llmexp.memory.trace.device import fake_gpu
from llmexp.memory.trace.recorder import Recorder, Recording
from llmexp.memory.trace.stand_in import Batches, build_optimizer, fit
from llmexp.precision import Precision

# cuBLAS takes one per thread that multiplies (forward, backward), inside the allocator, under
# CUBLAS_WORKSPACE_CONFIG=:4096:2:16:8, which llmexp/memory/budget.py sets
WORKSPACE = 2 * 4096 * 1024 + 8 * 16 * 1024


def trace(setting: Setting, batches: Batches, *, steps: int = 2) -> Recording:
    """Return the allocations of some optimizer steps and of a validation before and after."""
    config = build_config(setting)
    trained = bare_model(config)
    trained.llmexp_reaches_head = reaches_head(config)
    Precision(name=setting.precision, tf32=False).cast_weights(trained)
    with fake_gpu(setting.kernel) as device:
        recorder = Recorder(device)
        with recorder:
            materialize(trained, device)
            recorder.name(trained.parameters(), "weights")
            recorder.name(trained.buffers(), "weights")
            for _ in range(2):
                recorder.hold(WORKSPACE, "workspaces")
            _watch(trained, recorder)
            built = build_optimizer(trained, setting)
            built.register_step_pre_hook(lambda *_: recorder.mark("optimizer"))
            built.register_step_post_hook(
                lambda *_: recorder.name(_tensors(built.state), "optimizer states")
            )
            fit(trained, batches, built, device=device, steps=steps)
    return recorder.recording


def build_config(setting: Setting) -> Any:
    """Return the transformers config of a setting."""
    from transformers import AutoConfig

    values = copy.deepcopy(dict(setting.config))
    ids = dict.fromkeys(("bos_token_id", "eos_token_id"))  # the tokenizer's, and no memory
    config = AutoConfig.for_model(values.pop("model_type"), **ids, **values)
    if setting.layers is not None:
        _cut(config, setting.layers)
    return config


def _cut(config: Any, layers: int) -> None:
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def bare_model(config: Any) -> Any:
    """Return the model as llmexp.model builds it, with weights that take no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(
            config, attn_implementation=family.attention_of(config), dtype=torch.float32
        )
    model.fuse_gelu(built)
    return built


def reaches_head(config: Any) -> bool:
    """Tell whether the loss can go in chunks, by trying a small real model of the same family."""
    from transformers import AutoModelForCausalLM

    if config.model_type == "gpt2":
        return True
    small = copy.deepcopy(config)
    small.vocab_size = 256
    small.pad_token_id = None
    _cut(small, min(2, config.num_hidden_layers))
    return loss.probe_head(AutoModelForCausalLM.from_config(small, dtype=torch.float32)) is None


def materialize(module: nn.Module, device: torch.device) -> None:
    """Put the parameters and buffers on `device`; what is tied stays tied."""
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    moved[id(tensor)] = nn.Parameter(empty) if _is_parameter(tensor) else empty
                tensors[name] = moved[id(tensor)]  # type: ignore[assignment]


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _tensors(state: Mapping[Any, Mapping[str, Any]]) -> list[Tensor]:
    return [t for s in state.values() for t in s.values() if isinstance(t, Tensor)]


def _watch(trained: Any, recorder: Recorder) -> None:
    """Mark the phases of the step, and name gradients and cast weights as they come.

    With checkpointing the blocks run again in the backward pass, and their hooks with them.
    """
    forward = in_loss = False

    def start(*_: Any) -> None:
        nonlocal forward
        forward = True
        recorder.mark("forward")

    def finish(*_: Any) -> None:
        nonlocal forward, in_loss
        forward, in_loss = False, True
        recorder.name(autocast.cached_casts(), "autocast copies")
        recorder.mark("loss", kind="loss")

    def leave_autocast() -> None:
        nonlocal in_loss
        if in_loss:  # not when a block that is computed again leaves it
            in_loss = False
            recorder.mark("loss backward", kind="loss")

    def block(position: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not forward:
                return
            recorder.name(autocast.cached_casts(), "autocast copies")
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda _: recorder.mark(f"backward {position}"))

        return hook

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if forward and hidden.requires_grad:
            hidden.register_hook(lambda _: recorder.mark("backward embedding"))

    autocast.at_end.append(leave_autocast)
    trained.base_model.register_forward_pre_hook(start)
    trained.base_model.register_forward_hook(finish)
    blocks = block_list(trained)
    for index, layer in enumerate(blocks):
        position = "last" if index == len(blocks) - 1 else "first" if index == 0 else "middle"
        layer.register_forward_hook(block(position))
    blocks[0].register_forward_pre_hook(enter, with_kwargs=True)
    for parameter in trained.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: recorder.name([p.grad], "gradients"))


def block_list(trained: Any) -> nn.ModuleList:
    """Return the model's blocks: the list of as many modules as the config has layers."""
    count = trained.config.num_hidden_layers
    lists = (m for m in trained.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    return next(lists)
