"""benchmarks/peers.py starts, and says what it should of what it measured."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield


def contest(**changes: Any) -> Any:
    """Return (a) in fp32 at dropout 0: llmexp twice as fast as the tutorial loop, same losses."""
    from peer_contest import Result
    from peer_table import Contest
    from peer_work import WORKS

    losses = {1: 6.2, 2: 6.1}
    slow = Result("tutorial", 0, 100.0, 2.0, 4.0, 9.0, losses)
    fast = Result("llmexp", 0, 200.0, 1.0, 3.0, 9.0, dict(losses))
    trainer = replace(slow, peer="trainer")
    results = [slow, fast, trainer, *(replace(one, round=1) for one in (trainer, fast, slow))]
    settings = {
        "work": WORKS["a"],
        "precision": "fp32",
        "dropout": 0.0,
        "peers": ["llmexp", "tutorial", "trainer"],
        "results": results,
        "limits": [210.0, 210.0],
        "missing": {"trl": "trl not installed"},
    }
    return Contest(**{**settings, **changes})


def test_it_runs_at_the_smallest_size(tmp_path: Path) -> None:
    """Two contestants that need nothing but what llmexp needs learn the same, in two processes."""
    page = tmp_path / "page.md"
    asked = ["--smallest", "--here", "--work", "a", "--precision", "fp32", "--dropout", "0"]
    asked += ["--peers", "llmexp,nanogpt", "--rounds", "1", "--output", str(page)]
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "--folder", str(tmp_path), *asked]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = page.read_text()
    assert "| llmexp |" in text and "| nanoGPT, written out |" in text and "the limit" in text
    assert "failed" not in text and "Not the same learning" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


@pytest.mark.parametrize(
    "asked",
    [
        ["--work", "a,e"],
        ["--peers", "nobody"],
        ["--precision", "fp64"],
        ["--dropout", "x"],
        ["--dropout", "1"],
        ["--dropout", "nan"],
        ["--steps", "1"],
        ["--rounds", "0"],
        ["--every", "-1"],
        ["--text", "no/such/file"],
        ["--tokenizer", "tests"],
        ["--folder", "no/such/folder"],
        ["--output", "no/such/folder/page.md"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_refused_in_a_line(
    asked: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peer_request import asked as read

    monkeypatch.setattr(sys, "argv", ["peers.py", *asked])
    with pytest.raises(SystemExit) as ended:
        read("usage")
    assert ended.value.code == 2
    option, wrong = asked
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"peers.py: error: argument {option}: ") and wrong.split(",")[-1] in told


def test_a_table_holds_ratios_of_the_same_round_and_the_goals() -> None:
    from peer_table import page

    lines = list(page(contest()))
    ours = next(line for line in lines if line.startswith("| llmexp"))
    assert ours.split(" | ")[1:8] == ["200", "2.00x", "95%", "1.00", "0.50x", "3.0", "0.75x"]
    assert any(line.startswith("| TRL SFTTrainer | trl not installed") for line in lines)
    goals = [line for line in lines if line.startswith("- goal")]
    assert goals == [
        "- goal: share of the limit at least 0.95: 0.95, met",
        "- goal: memory against Trainer at most 0.6: 0.50, met",
        "- goal: command to first step against Trainer at most 0.7: 0.75, **missed**",
    ]
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1


def test_who_learned_something_else_is_told_and_fails() -> None:
    from peer_table import page
    from peers import is_good

    same = contest()
    assert is_good(same) and not same.strangers()
    other = [
        replace(one, losses={1: 6.2, 2: 6.15}) if one.peer == "trainer" else one
        for one in same.results
    ]
    different = replace(same, results=other)
    assert different.strangers() == ["trainer"] and not is_good(different)
    assert any("Not the same learning" in line for line in page(different))
    assert is_good(replace(different, dropout=0.1))  # there no two have the same random numbers


def test_a_run_of_llmexp_that_failed_fails_all_and_that_of_a_peer_is_told() -> None:
    from peer_contest import Result
    from peer_table import page
    from peers import is_good

    same = contest()
    theirs = replace(same, results=[*same.results, Result("trainer", 2, failure="no memory")])
    assert is_good(theirs)
    assert any("failed: no memory" in line for line in page(theirs))
    assert not is_good(replace(same, results=[*same.results, Result("llmexp", 2, failure="no")]))


def test_the_limit_counts_six_operations_per_parameter_and_token() -> None:
    from peer_limit import products

    layers, width, vocabulary, tokens = 12, 768, 50257, 100
    parameters = 12 * layers * width**2 + vocabulary * width
    found = products(layers, width, vocabulary, tokens=tokens, labels=tokens)
    assert sum(2 * often * m * k * n for often, m, k, n in found) == 6 * parameters * tokens


def test_the_learning_rate_is_that_of_llmexp() -> None:
    from peer_work import multiplier, warm_up_steps

    from llmexp.schedule import linear

    for total in (2, 10, 125):
        warmup = warm_up_steps(total)
        ours = [linear(step, total, warmup=warmup, floor=0.0) for step in range(total)]
        assert [multiplier(step, total) for step in range(total)] == pytest.approx(ours)
