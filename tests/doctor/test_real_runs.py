"""Small real runs, made sick on purpose: the doctor names the sickness, and nothing in the healthy
one."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from llmexp import data, job, request
from llmexp.errors import RunError
from llmexp.sweep.trial import NullTrial

Seen = pytest.CaptureFixture[str]
LINES = [
    f"{who} {does} {what} {number}."
    for number in ("once", "twice", "today", "again")
    for who in ("the cat", "a small bird", "my old friend", "she", "nobody here")
    for does in ("sees", "likes", "finds", "wants")
    for what in ("the sea", "one red apple and some bread", "it", "a way home")
]
SMALL = (
    "model.architecture={n_layer:2,n_head:2,n_embd:32,n_positions:64,vocab_size:320}",
    *("data=text", "data.path=lines.txt", "data.max_length=32", "data.cache_dir=cache"),
    *("samples.prompts=[the]", "samples.max_new_tokens=4", "train.log_every=2"),
    *("logger=none", "hw=cpu", "precision=fp32"),
)
SAMPLE = Path(data.__file__).parent / "sample"
FEW = sorted(SAMPLE.glob("*.txt"))[0].read_text().splitlines()[:400:20]
BY_HEART = ("train.epochs=50", "train.validate_every=5", "optimizer.lr=1e-2", "data.val_size=0.2")
Train = Callable[..., list[str]]


def shuffled(lines: list[str]) -> list[str]:
    """Return lines of which no token follows from those before it."""
    chance = random.Random(0)
    return [" ".join(chance.choice("abcdefghij") for _ in line.split()) for line in lines]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train as a command would; return the names of what report.md finds."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, lines: list[str] = LINES) -> list[str]:
        Path("lines.txt").write_text("\n".join(lines))
        given = [*SMALL, "run.name=run", *overrides]
        with initialize_config_dir(str(request.CONF), version_base="1.3"):
            settings = request.resolved(compose("train", given))
        try:
            job.train(settings, Path("outputs/run"), given, NullTrial())
        except RunError as error:
            print(error)
        return re.findall(r"^\*\*([\w -]+)\*\*: ", Path("outputs/run/report.md").read_text(), re.M)

    return run


def test_a_healthy_run(train: Train, capsys: Seen) -> None:
    assert train("train.epochs=6", "optimizer.lr=1e-2") == []
    told = capsys.readouterr()
    assert told.err == ""
    assert re.search(r"Epoch 6/6 .* new best, was \d.\d+: (still|hardly) improving", told.out)
    assert "Nothing found that is not well." in Path("outputs/run/report.md").read_text()


def test_a_learning_rate_of_10(train: Train) -> None:
    assert {"rising", "non-finite"} & set(train("optimizer.lr=10", "train.epochs=2"))


def test_a_learning_rate_of_one_in_a_billion(train: Train, capsys: Seen) -> None:
    assert train("optimizer.lr=1e-9", "train.epochs=3") == ["flat"]
    told = capsys.readouterr().err
    assert "warning: flat: the training loss was" in told
    assert "try optimizer.lr=0.003" in told


def test_20_lines_for_50_epochs(train: Train, capsys: Seen) -> None:
    found = train(*BY_HEART, lines=FEW)
    assert {"overfitting", "validation too small"} <= set(found)
    assert capsys.readouterr().err.count("overfitting: ") == 1
    assert "overfitting; best stays epoch" in Path("outputs/run/report.md").read_text()


def test_shuffled_labels(train: Train) -> None:
    found = train("train.epochs=6", "optimizer.lr=1e-2", lines=shuffled(LINES))
    assert found == ["flat"]
    assert "the frequencies of the tokens alone give" in Path("outputs/run/report.md").read_text()


def test_fp16_overflow(train: Train) -> None:
    assert "scaler collapse" in train("precision=fp16", "optimizer.lr=1e3", "train.epochs=4")


def report() -> str:
    """Return report.md without what tells of the moment: the speed, the memory in the plan."""
    sections = Path("outputs/run/report.md").read_text().split("\n## ")
    return "\n## ".join(s for s in sections if s.split("\n")[0] not in ("Speed", "Plan"))


def test_a_resumed_run_says_what_the_whole_one_says(train: Train, capsys: Seen) -> None:
    settings = (*BY_HEART, "checkpoint.keep=100")
    train(*settings, lines=FEW)
    whole, said = report(), capsys.readouterr().err
    step = json.loads(Path("outputs/run/metrics.jsonl").read_text().splitlines()[-1])
    late = f"step-{step['train/global_step'] - 10:08d}"
    train(*settings, f"resume=outputs/run/checkpoints/{late}", lines=FEW)
    assert report() == whole
    assert "overfitting: " in said
    again = capsys.readouterr()
    assert "overfitting: " not in again.err
    assert "overfitting since epoch" in again.out
