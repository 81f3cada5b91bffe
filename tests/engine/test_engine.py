"""The laws of the step: the gradient does not depend on how it was cut, nothing depends on the
past."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from llmexp import config, data, engine, optimizer, schedule
from llmexp.engine import Plan, State
from llmexp.loss import probe_head
from llmexp.memory import oom
from llmexp.model import train_tokenizer
from llmexp.precision import Precision
from llmexp.request import CONF
from llmexp.validation import Validation

CPU = torch.device("cpu")


class Watcher:
    """A run that only remembers what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.events: list[oom.Event] = []

    def log(self, state: State, metrics: dict[str, float]) -> None:
        self.rows += [{"step": state.step, **metrics}] if metrics else []

    def validated(self, model: torch.nn.Module, state: State, found: Validation) -> None: ...

    def checkpoint(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: State
    ) -> None: ...

    def out_of_memory(self, event: oom.Event) -> None:
        self.events.append(event)

    def stops(self) -> bool:
        return False

    def roll_back(self, *_: object) -> None: ...


class Casts(TorchDispatchMode):
    """Counts how often one tensor is copied into another number format."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.address, self.count = tensor.data_ptr(), 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), settings: Any = None
    ) -> Any:
        if function is torch.ops.aten._to_copy.default:
            self.count += arguments[0].data_ptr() == self.address
        return function(*arguments, **(settings or {}))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> data.Corpus:
    """Return 60 lines of very different length, tokenised."""
    folder = tmp_path_factory.mktemp("corpus")
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "saw",
        "one",
        "red",
        "bird",
        "fly",
        "over",
        "some",
        "tall",
        "trees",
        "near",
        "it",
    ]
    lines = [" ".join(words[: 1 + i % len(words)]) + f" {i}." for i in range(60)]
    (folder / "lines.txt").write_text("\n".join(lines))
    part = yaml.safe_load((CONF / "data" / "text.yaml").read_text())
    part |= {
        "path": str(folder / "lines.txt"),
        "max_length": 48,
        "cache_dir": str(folder / "cache"),
    }
    tokenizer = train_tokenizer(lines, vocab_size=320)
    return config.call(part).tokenize(tokenizer, seed=0)


def batches(corpus: data.Corpus, *, side: str = "train", size: int = 8, pack: bool = True) -> Any:
    examples = getattr(corpus, side)
    return data.Batches(
        examples, batch_size=size, max_length=48, seed=0, shuffle=side == "train", pack=pack
    )


def precision(name: str = "fp32") -> Precision:
    return Precision(name=name, tf32=False).choose(CPU)


def new(gpt2: Callable[..., Any], *, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    model = gpt2(vocab_size=320, **changes).to(dtype)
    assert probe_head(model) is None
    return model


def train(
    model: Any, corpus: data.Corpus, *, lr: float = 1e-3, **settings: Any
) -> tuple[State, Watcher]:
    watcher, state = Watcher(), settings.pop("state", State())
    adam = optimizer.build(model, partial(torch.optim.AdamW, lr=lr, fused=True))
    given = {"micro_batch_size": 2, "steps": 6, "steps_per_epoch": 7, "log_every": 1, "seed": 0}
    engine.fit(
        model=model,
        batches=batches(corpus, size=settings.pop("batch_size", 8)),
        validation=batches(corpus, side="validation"),
        optimizer=adam,
        schedule=partial(schedule.linear, warmup=0.1, floor=0.0),
        precision=settings.pop("precision", precision()),
        plan=Plan(**{**given, **settings}),
        run=watcher,
        state=state,
    )
    return state, watcher


def gradients(model: Any, corpus: data.Corpus, *, micro: int, pack: bool) -> list[torch.Tensor]:
    model.zero_grad()
    batch = batches(corpus, pack=pack)[3]
    engine.accumulate(model, batch, precision(), micro)
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(
    gpt2: Callable[..., Any], corpus: data.Corpus, micro: int, pack: bool
) -> None:
    model = new(gpt2)
    whole = gradients(model, corpus, micro=8, pack=False)
    cut = gradients(model, corpus, micro=micro, pack=pack)
    for one, other in zip(whole, cut, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("micro", [1, 4, 8])
def test_autocast_casts_each_weight_once_a_step(
    gpt2: Callable[..., Any], corpus: data.Corpus, micro: int
) -> None:
    model = new(gpt2, dtype=torch.float32)
    weight = model.transformer.h[0].mlp.c_fc.weight
    with Casts(weight) as casts:
        engine.accumulate(model, batches(corpus, pack=False)[0], precision("bf16"), micro)
    assert casts.count == 1


def test_the_gradient_is_that_of_transformers_mean_over_all_label_tokens(
    gpt2: Callable[..., Any], corpus: data.Corpus
) -> None:
    model = new(gpt2)
    ours = gradients(model, corpus, micro=2, pack=True)
    model.zero_grad()
    batch = batches(corpus)[3]
    total = torch.zeros((), dtype=torch.float64)
    for index in batch.indices:
        ids = torch.tensor(corpus.train[index].input_ids)[None]
        logits = model(ids).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    (total / batch.label_tokens).backward()
    for one, parameter in zip(ours, model.parameters(), strict=True):
        assert torch.allclose(one, parameter.grad, rtol=1e-9, atol=1e-12)


def test_validation_does_not_depend_on_batch_size_or_packing(
    gpt2: Callable[..., Any], corpus: data.Corpus
) -> None:
    model = new(gpt2)
    losses = [
        engine.validate(
            model,
            batches(corpus, side="validation", size=size, pack=pack),
            precision(),
            Plan(micro),
        ).loss
        for size, micro, pack in [(1, 1, False), (3, 2, True), (8, 8, False), (64, 3, True)]
    ]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-10)


def test_one_example_can_be_overfitted(gpt2: Callable[..., Any], corpus: data.Corpus) -> None:
    model = new(gpt2, dtype=torch.float32)
    few = batches(corpus, size=1)
    adam = optimizer.build(model, partial(torch.optim.AdamW, lr=1e-2, fused=True))
    for _ in range(120):
        loss = engine.accumulate(model, few[0], precision(), 4)
        adam.step()
        adam.zero_grad()
    assert loss < 0.01


def test_the_same_seed_gives_the_same_bits_with_dropout(
    gpt2: Callable[..., Any], corpus: data.Corpus
) -> None:
    runs = [new(gpt2, dtype=torch.float32, resid_pdrop=0.2, embd_pdrop=0.2) for _ in range(2)]
    rows = []
    for model in runs:
        torch.rand(7)  # what happened before does not matter
        rows.append(train(model, corpus)[1].rows)
    assert rows[0] == rows[1]
    for one, other in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_log_interval_does_not_change_what_is_learned(
    gpt2: Callable[..., Any], corpus: data.Corpus
) -> None:
    models = [new(gpt2, dtype=torch.float32) for _ in range(2)]
    every, seldom = (
        train(m, corpus, log_every=n)[1].rows for m, n in zip(models, (1, 3), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
    tokens = [batches(corpus)[step].label_tokens for step in range(6)]
    each = {r["step"]: r["train/loss"] for r in every if "train/loss" in r}
    window = next(r["train/loss"] for r in seldom if r["step"] == 6)
    mean = sum(each[s] * tokens[s - 1] for s in (4, 5, 6)) / sum(tokens[3:6])
    assert window == pytest.approx(mean, rel=1e-12)


def test_early_stop_waits_for_patience(gpt2: Callable[..., Any], corpus: data.Corpus) -> None:
    model = new(gpt2, dtype=torch.float32)
    state, _ = train(model, corpus, lr=1e-30, steps=50, validate_every=1 / 7, patience=3)
    assert (state.step, state.stopped, state.validations) == (3, "patience", 4)
    assert state.best_step == 0


def test_validation_is_due_at_equal_shares_and_at_the_end() -> None:
    plan = Plan(1, steps=25, steps_per_epoch=10, validate_every=0.5)
    assert [s for s in range(1, 26) if plan.validates_at(s)] == [5, 10, 15, 20, 25]
    assert [s for s in range(1, 26) if Plan(1, steps=23, steps_per_epoch=10).validates_at(s)] == [
        10,
        20,
        23,
    ]


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_every_precision_learns_on_the_cpu(
    gpt2: Callable[..., Any], corpus: data.Corpus, name: str
) -> None:
    model = new(gpt2, dtype=torch.float32)
    state, watcher = train(model, corpus, precision=precision(name), steps=30, lr=1e-2)
    losses = [row["eval/loss"] for row in watcher.rows if "eval/loss" in row]
    assert losses[-1] < losses[0] - 0.5
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert state.health.nonfinite <= (4 if name == "fp16" else 0)  # fp16 finds its scale by trying


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    gpt2: Callable[..., Any], corpus: data.Corpus
) -> None:
    model = new(gpt2, dtype=torch.float32)
    sick = model.transformer.ln_f.weight
    hook = sick.register_hook(lambda grad: grad * math.inf)
    before = [p.clone() for p in model.parameters()]
    state, watcher = train(model, corpus, steps=1)
    hook.remove()
    assert state.health.nonfinite == 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not math.isfinite(watcher.rows[-1]["train/grad_norm"])


def test_running_out_of_memory_changes_the_micro_batch_not_the_result(
    gpt2: Callable[..., Any], corpus: data.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, pressed = new(gpt2), new(gpt2)
    train(calm, corpus)
    forward, real = type(pressed.transformer).forward, {"fail": True}

    def short(self: Any, *args: Any, **kwargs: Any) -> Any:
        if real["fail"] and kwargs["input_ids"].shape[0] > 1 and self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(pressed.transformer), "forward", short)
    _, watcher = train(pressed, corpus)
    assert [(e.failed, e.micro_batch_size) for e in watcher.events] == [(2, 1)]
    for one, other in zip(calm.parameters(), pressed.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_a_state_survives_json(tmp_path: Path) -> None:
    import json

    state = State(step=3, best=1.25, window=[0.1, 3.0])
    assert State(**json.loads(json.dumps(state.as_dict()))).as_dict() == state.as_dict()
