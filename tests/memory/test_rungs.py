"""What changes numerics is taken only where it is allowed and nothing else fits, in its order."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmexp import checkpoint, job, optimizer
from llmexp.errors import RequestError
from llmexp.memory import measure, planner, rungs
from llmexp.memory.budget import GIB, Budget
from llmexp.memory.prediction import Prediction, predict
from llmexp.memory.rungs import Case
from llmexp.memory.search import search
from llmexp.memory.setting import gpt2_config, make
from llmexp.memory.trace import stand_in
from llmexp.plan import composed
from llmexp.sweep.trial import NullTrial

CPU = torch.device("cpu")
BOTH = ("adamw8bit", "bf16_parameters")
# much vocabulary, few layers: what the weights bring counts, and a trace takes a second
WORDY = "{n_layer:2,n_head:4,n_embd:512,n_positions:512,vocab_size:20000}"
WANTED = (
    f"model.architecture={WORDY}",
    *("data.max_length=512", "train.batch_size=2", "train.micro_batch_size=1"),
    *("train.activation_checkpointing=true", "precision=bf16", "hw=6gb"),
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trace here, with what the code says today, and only once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(measure, "SHIPPED", Path("nothing"))
        measure.shipped.cache_clear()
        measure.seen.clear()
        yield
        measure.stop()
    measure.shipped.cache_clear()
    measure.seen.clear()


@pytest.fixture(scope="module")
def case() -> Case:
    settings = composed(WANTED)
    part = settings["model"]
    return Case(settings, gpt2_config(part["architecture"], part["dropout"]), ("bf16",))


@pytest.fixture(scope="module")
def ladder(case: Case) -> list[tuple[Case, Prediction]]:
    """Return every rung with its prediction."""
    cases = [rungs.taking(case, taken) for taken in ((), BOTH[:1], BOTH)]
    return [(rung, predict(rung.requests(1, checkpointing=True))) for rung in cases]


def of(prediction: Prediction, *, less: int = 0) -> Budget:
    return Budget("test", (prediction.total - less + 512) / GIB, "test")


def allowing(case: Case, *names: str) -> Case:
    return Case(case.settings, case.config, case.precisions, names)


def gib(budget: Budget) -> str:
    return f"++hw.budget_gib={budget.gib}"


def test_each_rung_takes_less_than_the_one_before(ladder: Any) -> None:
    exact, eight, both = (prediction.total for _, prediction in ladder)
    assert exact > 1.1 * eight > 1.2 * both


def test_the_first_that_fits_is_taken_in_order(case: Case, ladder: Any) -> None:
    for rung, prediction in ladder:
        fit = search(allowing(case, *BOTH), of(prediction))
        assert fit is not None and fit.case.taken == rung.taken
        assert fit.prediction == prediction
    assert search(allowing(case, *BOTH), of(ladder[-1][1], less=2**20)) is None


@pytest.mark.slow
def test_checkpointing_comes_before_what_changes_numerics(ladder: Any) -> None:
    wanted = [*WANTED, "train.activation_checkpointing=auto", "train.allow=[adamw8bit]"]
    plan = planner.plan(composed([*wanted, gib(of(ladder[0][1]))]))
    assert plan.activation_checkpointing and plan.taken == ()


def test_what_is_not_allowed_is_not_taken(case: Case, ladder: Any) -> None:
    exact, eight, both = (prediction for _, prediction in ladder)
    assert search(case, of(eight)) is None
    assert search(allowing(case, "adamw8bit"), of(both)) is None
    fit = search(allowing(case, *BOTH), of(exact))
    assert fit is not None and fit.case.taken == () and fit.case.settings == case.settings


def test_another_optimizer_or_format_is_never_swapped(case: Case) -> None:
    sgd = composed([*WANTED, "optimizer=sgd", "precision=fp16"])
    asked = Case(sgd, case.config, ("fp16",), BOTH)
    assert list(rungs.opt_ins(asked)) == [asked]


def test_the_optimizer_keeps_what_it_was_given(case: Case) -> None:
    settings = composed([*WANTED, "optimizer.lr=0.003", "optimizer.betas=[0.8,0.9]"])
    taken = rungs.taking(Case(settings, case.config, ("bf16",)), BOTH)
    part = taken.settings["optimizer"]
    assert part["_target_"] == "llmexp.optimizer.adamw8bit"
    assert (part["lr"], part["betas"]) == (0.003, [0.8, 0.9])
    assert taken.settings["precision"]["name"] == "bf16_parameters"


def test_the_parts_are_those_of_the_formats(ladder: Any) -> None:
    exact, eight, both = (prediction.parts for _, prediction in ladder)
    assert eight["optimizer states"] == pytest.approx(exact["optimizer states"] / 3.94, rel=0.02)
    assert eight["weights"] == exact["weights"]
    assert both["weights"] == pytest.approx(exact["weights"] / 2, rel=0.02)
    assert both["gradients"] == pytest.approx(exact["gradients"] / 2, rel=0.02)
    assert "autocast copies" not in both


def test_the_plan_says_loudly_what_was_taken(ladder: Any) -> None:
    budget = gib(of(ladder[-1][1]))
    allowed = "train.allow=[bf16_parameters,adamw8bit]"
    plan = planner.plan(composed([*WANTED, budget, allowed]))
    loud = [line for line in plan.lines if line.startswith("CHANGES NUMERICS (train.allow)")]
    assert [name in line for name, line in zip(BOTH, loud, strict=True)] == [True, True]
    assert plan.taken == BOTH and plan.settings["precision"]["name"] == "bf16_parameters"


@pytest.mark.slow
def test_a_refusal_proposes_them_and_its_commands_fit(ladder: Any) -> None:
    for rung, prediction in ladder[1:]:
        overrides = [*WANTED, gib(of(prediction))]
        with pytest.raises(RequestError) as refusal:
            planner.plan(composed(overrides), overrides=overrides)
        lines = [line for line in str(refusal.value).splitlines() if "train.allow" in line]
        assert len(lines) == 1 and "other numerics" in lines[0]
        words = shlex.split(lines[0], comments=True)
        assert words[-1] == f"train.allow=[{','.join(rung.taken)}]"
        plan = planner.plan(composed(words[3:]))
        assert plan.taken == rung.taken
        assert plan.prediction is not None and plan.budget is not None
        assert plan.prediction.total <= plan.budget.bytes
        with pytest.raises(RequestError, match="does not fit"):
            planner.plan(composed(words[3:]), taken=())


def test_a_run_that_continues_keeps_what_it_took(ladder: Any) -> None:
    roomy = planner.plan(composed([*WANTED, "train.allow=[adamw8bit]"]), taken=BOTH[:1])
    assert roomy.taken == BOTH[:1]
    exact = gib(of(ladder[0][1]))
    assert planner.plan(composed([*WANTED, exact, "train.allow=[adamw8bit]"]), taken=()).taken == ()
    on_cpu = planner.plan(composed([*WANTED, "hw=cpu"]), device=CPU, taken=BOTH)
    assert on_cpu.settings["precision"]["name"] == "bf16_parameters"


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_the_run_truly_uses_what_its_plan_took(
    ladder: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="pip install 'llmexp[8bit]'")
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("\n".join(f"line {n} of many words" for n in range(40)))
    line = [*WANTED, gib(of(ladder[0][1], less=2**20)), f"train.allow=[{name}]"]
    line += ["data=text", "data.path=lines.txt", "data.cache_dir=cache", "samples.prompts=[]"]
    line += ["train.max_steps=1", "logger=none"]
    job.train(composed(line), Path("outputs/run"), line, NullTrial())
    path = Path("outputs/run/checkpoints/step-00000001")
    kinds = {kind for _, kind in shapes(path / "optimizer.safetensors")}
    weights = {kind for _, kind in shapes(path / "model.safetensors")}
    assert ("U8" in kinds) == (name == "adamw8bit")
    assert weights == {"BF16" if name == "bf16_parameters" else "F32"}
    assert checkpoint.peek(path).state["taken"] == [name]
    assert "CHANGES NUMERICS (train.allow)" in Path("outputs/run/report.md").read_text()


def shapes(path: Path) -> list[tuple[str, str]]:
    """Return names and number formats of a safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [(name, entry["dtype"]) for name, entry in header.items()]


def test_the_stand_in_has_the_state_of_the_library() -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'llmexp[8bit]'")
    sizes = [(100, 64), (64,), (4096,), (63, 65), (1, 4097)]
    states = []
    for kind in (optimizer.adamw8bit, stand_in.AdamW8bit):
        weights = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
        built = kind([{"params": weights}])
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        built.step()
        found = [built.state[weight] for weight in weights]
        states.append([{n: (t.shape, t.dtype) for n, t in s.items() if n != "step"} for s in found])
    assert states[0] == states[1]


def test_keys_of_what_there_was_stay() -> None:
    """The numbers that ship are kept under them."""
    adamw = {"_target_": "torch.optim.AdamW", "fused": True, "weight_decay": 0.01, "lr": 1e-4}
    settings = {"optimizer": adamw, "data": {"pack": False, "max_length": 64}}
    tiny = {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 128, "vocab_size": 512}
    made = make(settings, gpt2_config(tiny, 0.1), precision="bf16", checkpointing=False)
    assert made.key(4, 2) == "ebecf039b6aa459b9510"
