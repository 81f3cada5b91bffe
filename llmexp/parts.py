"""The parts of a run: what its settings name, built. Cheap checks come first."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmexp import config, cpu, data, gpu, heap, optimizer, probe
from llmexp.contracts import Accumulate
from llmexp.logger import Logger
from llmexp.memory import budget, planner
from llmexp.model import pick_device, quiet
from llmexp.precision import NARROW, Precision

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """What the settings name, built."""

    name: str
    device: torch.device
    precision: Precision
    tokenizer: Any
    corpus: data.Corpus
    batches: data.Batches
    validation: data.Batches
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    fits: planner.Plan
    logger: Logger
    packs: bool  # short examples share rows
    passes: Accumulate | None  # how those of a step run, where it is not one kernel after another
    launch: str  # the same in words
    remarks: list[str]  # what had to be done differently, and why


def build(
    settings: Settings,
    overrides: list[str],
    *,
    taken: Sequence[str] | None = None,
    graphs: bool | None = None,
) -> Parts:
    """Build every part. Cheap checks come first: a wrong request is refused within seconds.

    Of a run that continues: what it has `taken` of train.allow, whether it has CUDA `graphs`.
    """
    quiet()
    blueprint = config.call(settings["model"])
    source, architecture, device, logger = config.together(
        lambda: config.call(settings["data"]),
        blueprint.config,
        lambda: pick_device(settings["hw"]["device"]),
        lambda: config.call(settings["logger"]),
    )
    width = getattr(architecture, "hidden_size", None)
    limit_threads(device, width)
    precision: Precision = config.call(settings["precision"])
    precision.choose(device, width=width)
    planner.refuse_long_rows(settings, architecture.to_dict())
    fits = planner.plan(settings, device=device, overrides=overrides, taken=taken)
    precision, factory = as_planned(fits, precision, device)
    if fits.budget is not None and device.type == "cuda":
        budget.enforce(fits.budget, device)
    passes, launched = gpu.launch(settings, fits, device, before=graphs)

    tokenizer = blueprint.load_tokenizer(source.texts(), vocab_size=architecture.vocab_size)
    corpus = source.tokenize(
        tokenizer, seed=settings["seed"], batch_size=settings["train"]["batch_size"]
    )
    torch.manual_seed(settings["seed"])
    model = blueprint.build(architecture, tokenizer, device=device)
    suit(model, fits, device)
    full_logits_because, unpacked_because = probe.try_out(model, blueprint.name)
    precision.cast_weights(model)
    pack = settings["data"]["pack"] and not unpacked_because
    batches, validation = sides(corpus, settings, rows=fits.micro_batch_size, pack=pack)
    return Parts(
        name=blueprint.name,
        device=device,
        precision=precision,
        tokenizer=tokenizer,
        corpus=corpus,
        batches=batches,
        validation=validation,
        model=model,
        optimizer=optimizer_of(model, factory, settings, device),
        schedule=config.call(settings["schedule"]),
        fits=fits,
        logger=logger,
        packs=pack,
        passes=passes,
        launch=launched,
        remarks=remarks(model, full_logits_because, unpacked_because),
    )


def as_planned(
    fits: planner.Plan, precision: Precision, device: torch.device
) -> tuple[Precision, Any]:
    """Return the precision and the optimizer's call, as asked for or as train.allow let the plan
    take them."""
    if "bf16_parameters" in fits.taken:
        precision = config.call(fits.settings["precision"]).choose(device)
        precision.reason = "taken by the plan, as train.allow says"
    factory = config.call(fits.settings["optimizer"])
    optimizer.refuse_missing(factory)
    return precision, factory


def suit(model: Any, fits: planner.Plan, device: torch.device) -> None:
    """Make the model run as this device and the plan want it."""
    if device.type == "cpu":
        heap.keep_freed_blocks()
        cpu.speed_up(model)
    if fits.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def optimizer_of(
    model: nn.Module, factory: Any, settings: Settings, device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimizer over the model's weights; where they lie on a CPU with its state."""
    built = optimizer.build(model, factory, seed=settings["seed"])
    if device.type == "cpu":
        if settings["model"]["weights"] is not None:
            cpu.weights.leave_file(model)
        cpu.moments.make(built)
    return built


def remarks(model: Any, full_logits_because: str, unpacked_because: str) -> list[str]:
    """Say what had to be done differently for this model, and why."""
    attends = getattr(model.config, "num_attention_heads", None)  # Mamba does not
    eager = attends and model.config._attn_implementation == "eager"
    reasons = {
        "attention is eager": eager and f"{model.config.model_type} has no fused kernel here",
        "the loss takes full logits": full_logits_because,
        "one example per row, unpacked": unpacked_because,
    }
    return [f"{what}: {why}" for what, why in reasons.items() if why]


def sides(
    corpus: data.Corpus, settings: Settings, *, rows: int, pack: bool
) -> tuple[data.Batches, data.Batches]:
    """Return the batches to train on, and those to validate on."""
    length = settings["data"]["max_length"]
    train = data.Batches(
        corpus.train,
        batch_size=settings["train"]["batch_size"],
        max_length=length,
        seed=settings["seed"],
        pack=pack,
    )
    return train, data.to_measure(corpus.validation, rows=rows, max_length=length, pack=pack)


def limit_threads(device: torch.device, width: int | None) -> None:
    """Give a narrow model one CPU thread, unless OMP_NUM_THREADS says otherwise.

    Several gain little on small matrices, and on a busy machine they wait for each other: measured
    at 128 wide on two cores, 29 against 42 ms a step when idle, 200 to 2,000 against 45 when busy.
    """
    if device.type == "cpu" and (width or NARROW) < NARROW and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
