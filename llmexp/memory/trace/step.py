"""A model and two optimizer steps of the engine on the fake GPU: the same code that trains."""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmexp import engine, model, optimizer, precision
from llmexp.memory.setting import Setting
from llmexp.memory.trace import autocast
from llmexp.memory.trace.device import fake_gpu
from llmexp.memory.trace.recorder import Recorder, Recording

# cuBLAS takes one per thread that multiplies (forward, backward), inside the allocator, under
# CUBLAS_WORKSPACE_CONFIG=:4096:2:16:8, which llmexp/memory/budget.py sets
WORKSPACE = 2 * 4096 * 1024 + 8 * 16 * 1024


def trace(setting: Setting, *, rows: int, passes: int = 2) -> Recording:
    """Return the allocations of two optimizer steps of `passes` micro-batches of `rows` rows each.

    Validation runs before and after, as in a run. All micro-batches but the last are shorter, as
    the rows of real batches are: that fragments the memory.
    """
    config = build_config(setting)
    trained = bare_model(config)
    with fake_gpu(setting.kernel) as device, packing(setting.packed):
        recorder = Recorder(device)
        with recorder:
            _materialize(trained, device)
            recorder.name(trained.parameters(), "weights")
            recorder.name(trained.buffers(), "weights")
            for _ in range(2):
                recorder.hold(WORKSPACE, "workspaces")
            _watch(trained, recorder)
            _fit(trained, setting, _Batches(rows, setting, passes), recorder, device)
    return recorder.recording


def build_config(setting: Setting) -> Any:
    """Return the transformers config of a setting."""
    from transformers import AutoConfig

    values = copy.deepcopy(dict(setting.config))
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    if setting.layers is not None:
        config.num_hidden_layers = setting.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: setting.layers]
    return config


def bare_model(config: Any) -> Any:
    """Return the model as llmexp.model builds it, with weights that take no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=torch.float32
        )
    model.fuse_gelu(built)
    return built


def _materialize(module: nn.Module, device: torch.device) -> None:
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


@contextlib.contextmanager
def packing(packed: bool) -> Iterator[None]:
    """Let transformers see what it would see in real position ids: packed examples, or none.

    It cannot look into fake ones and then prepares for the worst, a mask.
    """
    from transformers import masking_utils

    original = masking_utils.find_packed_sequence_indices
    if not packed:
        masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original


def _fit(
    trained: Any,
    setting: Setting,
    batches: _Batches,
    recorder: Recorder,
    device: torch.device,
) -> None:
    """Run `engine.fit`."""
    if setting.checkpointing:
        trained.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    trained.llmexp_reaches_head = setting.chunked
    built = optimizer.build(trained, _factory(setting.optimizer))
    built.register_step_pre_hook(lambda *_: recorder.mark("optimizer"))
    built.register_step_post_hook(
        lambda *_: recorder.name(_tensors(built.state), "optimizer states")
    )
    engine.fit(
        model=trained,
        batches=batches,
        validation=batches,
        optimizer=built,
        schedule=lambda step, steps: 1.0,
        precision=precision.Precision(name=setting.precision, tf32=False).choose(device),
        plan=engine.Plan(
            steps=2,
            steps_per_epoch=2,
            micro_batch_size=batches.rows,
            max_grad_norm=1.0,
            validate_every=1.0,
            patience=math.inf,
            log_every=1,
            seed=0,
        ),
        run=cast(engine.Run, _Silent()),
        state=engine.State(),
    )


def _factory(spec: Mapping[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    module, _, name = str(spec["_target_"]).rpartition(".")
    arguments = {key: value for key, value in spec.items() if not key.startswith("_")}
    return partial(getattr(importlib.import_module(module), name), **arguments)


def _tensors(state: Mapping[Any, Mapping[str, Any]]) -> list[Tensor]:
    return [t for s in state.values() for t in s.values() if isinstance(t, Tensor)]


def _watch(trained: Any, recorder: Recorder) -> None:
    """Mark the phases of the step, and name gradients and cast weights as they come.

    With checkpointing the blocks run again in the backward pass, and their hooks with them.
    """
    forward = False

    def start(*_: Any) -> None:
        nonlocal forward
        forward = True
        recorder.mark("forward")

    def finish(*_: Any) -> None:
        nonlocal forward
        forward = False
        recorder.name(autocast.cached_casts(), "autocast copies")
        recorder.mark("loss", kind="loss")

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

    trained.base_model.register_forward_pre_hook(start)
    trained.base_model.register_forward_hook(finish)
    blocks = block_list(trained)
    for index, layer in enumerate(blocks):
        position = "last" if index == len(blocks) - 1 else "first" if index == 0 else "middle"
        layer.register_forward_hook(block(position))
    blocks[0].register_forward_pre_hook(enter, with_kwargs=True)
    for parameter in trained.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p: recorder.name([p.grad], "gradients")
        )


def block_list(trained: Any) -> nn.ModuleList:
    """Return the model's blocks: the list of as many modules as the config has layers."""
    count = trained.config.num_hidden_layers
    lists = (m for m in trained.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    return next(lists)


@dataclass
class _Rows:
    """One micro-batch: int64 [rows, length], as llmexp.data makes them."""

    input_ids: Tensor
    targets: Tensor
    segments: Tensor
    position_ids: Tensor | None

    @classmethod
    def of(cls, rows: int, length: int, *, packed: bool) -> _Rows:
        ids = [torch.zeros(rows, length, dtype=torch.int64) for _ in range(3 + packed)]
        return cls(ids[0], ids[1], ids[2], ids[3] if packed else None)

    def to(self, device: torch.device) -> _Rows:
        positions = None if self.position_ids is None else self.position_ids.to(device)
        return _Rows(
            self.input_ids.to(device), self.targets.to(device), self.segments.to(device), positions
        )


@dataclass
class _Batches:
    """`passes` micro-batches in every step."""

    rows: int
    setting: Setting
    passes: int
    steps_per_epoch: int = 1
    indices: tuple[int, ...] = ()
    label_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.label_tokens = self.rows * self.setting.length * self.passes

    def __getitem__(self, step: int) -> _Batches:
        return self

    def micro_batches(self, micro_batch_size: int, /) -> Iterator[_Rows]:
        for index in range(self.passes):
            last = index == self.passes - 1
            length = self.setting.length if last else self.setting.length * 13 // 16
            yield _Rows.of(micro_batch_size, length, packed=self.setting.packed)


class _Silent:
    """A run nobody hears of: the engine may tell it anything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None
