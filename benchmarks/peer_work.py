"""The work of benchmarks/peers.py: the same weights, the same examples in the same order, for all.

    python benchmarks/peer_work.py REQUEST.json

lays it out with llmexp's own data pipeline: a folder `model` that every contestant loads, and for
each work the text that llmexp reads and, in `examples.npz`, the token rows that it makes of them.
"""

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LEARNING_RATE = 3e-4
WEIGHT_DECAY = 0.01
MAX_NORM = 1.0
WARM_UP = 0.2  # of the steps

MODELS = {  # layers, width, heads, positions, vocabulary
    "gpt2": (12, 768, 12, 1024, 50257),
    "gpt2-medium": (24, 1024, 16, 1024, 50257),
    "smallest": (2, 64, 2, 64, 512),
}


@dataclass(frozen=True)
class Work:
    """What is trained on: so many examples per optimizer step, of at most so many tokens."""

    key: str
    title: str
    batch: int
    length: int  # tokens of an example at most, its last target included
    steps: int
    is_full: bool = False  # every example has that length
    evaluates: bool = False  # within the time that counts


@dataclass(frozen=True)
class Task:
    """What one contestant has to do, in a process of its own."""

    peer: str
    work: Work
    folder: str  # of the work; the model is beside it
    output: str  # a folder for all that is written
    precision: str  # fp32 or bf16
    dropout: float
    every: int  # optimizer steps between two looks at the loss and the clock

    @property
    def model(self) -> Path:
        """The folder of weights and tokenizer."""
        return Path(self.folder).parent / "model"

    @property
    def report(self) -> Path:
        """The file of JSON lines in which the contestant says how it goes."""
        return Path(self.output) / "report.jsonl"


WORKS = {
    "a": Work("a", "full rows, 4 x 512", 4, 512, 10, is_full=True),
    "b": Work("b", "full rows, 8 x 128", 8, 128, 30, is_full=True),
    "c": Work("c", "2,000 short lines", 16, 128, 125),
    "d": Work("d", "the text by lines, with evaluation", 16, 128, 125, evaluates=True),
}


def read_task(path: str) -> Task:
    """Return the task that the driver wrote."""
    found = json.loads(Path(path).read_text())
    return Task(**{**found, "work": Work(**found["work"])})


def multiplier(step: int, total: int) -> float:
    """Return what the peak learning rate is multiplied by: linear warm-up, linear decay."""
    rising = warm_up_steps(total)
    if step < rising:
        return (step + 1) / rising
    return 1 - (step - rising) / max(1, total - rising)


def warm_up_steps(total: int) -> int:
    """Return the steps until the peak."""
    return max(1, round(WARM_UP * total))


class Examples:
    """The examples of a work: those of the training in the order of their steps."""

    def __init__(self, folder: str) -> None:
        """Read what `lay_out` wrote."""
        found = np.load(Path(folder) / "examples.npz")
        self.train = split(found["train"], found["train_lengths"])
        self.validation = split(found["validation"], found["validation_lengths"])

    def labels(self, batch: int) -> list[int]:
        """Return the tokens that each step predicts: of each example all but the first."""
        counts = [len(ids) - 1 for ids in self.train]
        return [sum(counts[first : first + batch]) for first in range(0, len(counts), batch)]


def split(ids: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """Cut a row of tokens into examples."""
    ends = [0, *np.cumsum(lengths).tolist()]
    return [ids[start:end].tolist() for start, end in pairwise(ends)]


# -- laying it out: in the environment of llmexp --------------------------------------------------


def source(**changes: Any) -> Any:
    """Return llmexp's source of examples, from conf/data/text.yaml."""
    from omegaconf import OmegaConf

    from llmexp.data import load

    page = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "data" / "text.yaml"))
    assert isinstance(page, dict)
    arguments = {str(name): value for name, value in page.items() if name != "_target_"}
    return load(**{**arguments, **changes})


def texts(work: Work, text: str) -> tuple[list[str], list[str]]:
    """Return the lines to train on, and those to validate on."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if work.is_full:
        return lines[:-40], lines[-40:]
    held_out = max(8, work.steps * work.batch // 10)
    if work.evaluates:
        every = max(2, len(lines) // held_out)
        train = [line for number, line in enumerate(lines) if number % every]
        return train, lines[::every][:held_out]
    made = short_lines(text.split(), max(2000, work.steps * work.batch) + held_out)
    return made[held_out:], made[:held_out]


def short_lines(words: list[str], count: int) -> list[str]:
    """Make lines of 3 to 40 words, log-normal around 9, of the words of the text."""
    chance = random.Random(0)
    lines = []
    for _ in range(count):
        size = min(40, max(3, round(chance.lognormvariate(2.2, 0.5))))
        lines.append(" ".join(chance.choice(words) for _ in range(size)))
    return lines


def make_model(folder: Path, name: str, text: str, tokenizer: str | None) -> None:
    """Write fresh weights and a tokenizer, its own or one trained on the text."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    from llmexp.model import train_tokenizer

    layers, width, heads, positions, vocabulary = MODELS[name]
    if tokenizer:
        words = GPT2TokenizerFast.from_pretrained(tokenizer)
    else:
        words = train_tokenizer(text.splitlines(), vocab_size=vocabulary)
    words.pad_token = words.eos_token
    words.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": positions}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), words.eos_token_id)
    GPT2LMHeadModel(GPT2Config(**shape, vocab_size=vocabulary, **ids)).save_pretrained(folder)


def request_of(work: Work, folder: Path) -> dict[str, Any]:
    """Return what llmexp is asked for, as keys of conf/data/text.yaml."""
    return {
        "path": str(folder / "train.txt"),
        "validation_path": str(folder / "validation.txt"),
        "max_length": work.length - 1,  # llmexp counts inputs
        "unit": "block" if work.is_full else "example",
        "cache_dir": str(folder.parent / "cache"),
    }


def lay_out(work: Work, folder: Path, text: str, tokenizer: Any) -> dict[str, Any]:
    """Write a work's folder; return what is to be known of it."""
    folder.mkdir(parents=True)
    for name, lines in zip(("train", "validation"), texts(work, text), strict=True):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    corpus = source(**request_of(work, folder)).tokenize(tokenizer, batch_size=work.batch)
    seed, order = next(orders(work, corpus.train), (0, None))
    if order is None:
        raise SystemExit(
            f"({work.key}) {work.steps} steps need {work.steps * work.batch:,} examples, the text "
            f"makes {len(corpus.train):,}: give a longer one by --text, or fewer --steps"
        )
    arrays = {}
    everything = np.arange(len(corpus.validation))
    for name, found, numbers in (
        ("train", corpus.train, order),
        ("validation", corpus.validation, everything),
    ):
        arrays[name], _, arrays[f"{name}_lengths"] = found.gather(numbers)
    np.savez(folder / "examples.npz", **arrays)
    return {"seed": seed, "lengths": arrays["train_lengths"].tolist()}


def orders(work: Work, examples: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Yield seeds of llmexp, and the examples that its steps take; full ones where asked for.

    A text that is cut into rows ends in a shorter one: seeds that would take it are left out.
    """
    from llmexp.data import Batches

    if len(examples) < work.steps * work.batch:
        return
    for seed in range(42, 1042):
        batches = Batches(examples, batch_size=work.batch, max_length=work.length - 1, seed=seed)
        order = np.concatenate([np.array(batches[step].indices) for step in range(work.steps)])
        if not work.is_full or (examples.lengths(order) == work.length).all():
            yield seed, order


def main() -> None:
    """Lay out what the request asks for, and say on standard output what it is."""
    import torch
    from transformers import AutoTokenizer

    request = json.loads(Path(sys.argv[1]).read_text())
    folder, text = Path(request["folder"]), Path(request["text"]).read_text(encoding="utf-8")
    make_model(folder / "model", request["model"], text, request["tokenizer"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    works = [Work(**work) for work in request["works"]]
    facts = {work.key: lay_out(work, folder / work.key, text, tokenizer) for work in works}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    print(json.dumps({**facts, "gpu": gpu}))


def as_json(task: Task) -> str:
    """Return a task as JSON."""
    return json.dumps(asdict(task))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
