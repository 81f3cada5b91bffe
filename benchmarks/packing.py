"""What packing and the token store are worth, beside what others do with the same lines.

    python benchmarks/packing.py --text FILE > benchmarks/results/packing.md

Part 1 trains a model of gpt2-nano's size on the same examples in the same order, four ways, in
turns. Part 2 reads and tokenises the text so many times over, by llmexp and by `datasets.map`, in
turns, each in a process of its own. One thread, and CPU seconds, so that a busy machine disturbs
little; even so, trust the ratios more than the rates.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from llmexp.data import Batches, Examples, MicroBatch, load
from llmexp.model import train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
MAX_LENGTH = 512
BATCH_SIZE = 16  # examples per optimizer step
ROWS = 8  # per forward pass
STEPS = 6  # of each way in a round
HELD_OUT = 128  # examples

Way = Callable[[Examples, np.ndarray], Iterator[MicroBatch]]


def request(**changes: Any) -> Any:
    """Make a request for data from conf/data/text.yaml."""
    page = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "data" / "text.yaml"))
    assert isinstance(page, dict)
    arguments = {str(name): value for name, value in page.items() if name != "_target_"}
    return load(**{**arguments, **changes})


# -- part 1: the ways a step's examples reach the model ----------------------------------------


def padded(examples: Examples, numbers: np.ndarray, width: int | None) -> MicroBatch:
    """One example per row, padded to `width`, or to the longest."""
    found = [examples[int(number)].input_ids for number in numbers]
    width = width or max(len(ids) for ids in found) - 1
    input_ids = torch.zeros(len(found), width, dtype=torch.int64)
    targets = torch.full_like(input_ids, -100)
    for row, ids in enumerate(found):
        input_ids[row, : len(ids) - 1] = torch.from_numpy(ids[:-1])
        targets[row, : len(ids) - 1] = torch.from_numpy(ids[1:])
    labels = (targets.flatten() != -100).nonzero().flatten()
    return MicroBatch(input_ids, targets, None, torch.zeros_like(input_ids), labels)


def to_max_length(examples: Examples, numbers: np.ndarray) -> Iterator[MicroBatch]:
    """As the common tutorial script does: padding="max_length"."""
    for part in np.split(numbers, range(ROWS, len(numbers), ROWS)):
        yield padded(examples, part, MAX_LENGTH)


def to_longest(examples: Examples, numbers: np.ndarray) -> Iterator[MicroBatch]:
    """As a padding collator does: to the longest of the eight."""
    for part in np.split(numbers, range(ROWS, len(numbers), ROWS)):
        yield padded(examples, part, None)


def packed(examples: Examples, numbers: np.ndarray) -> Iterator[MicroBatch]:
    """As llmexp does."""
    from llmexp.data.batches import Batch

    yield from Batch(examples, numbers, max_length=MAX_LENGTH, pack=True).micro_batches(ROWS)


def buckets(examples: Examples, batches: Batches, steps: int) -> list[np.ndarray]:
    """The same examples sorted by length, in steps of like length, the steps in random order."""
    seen = np.concatenate([np.array(batches[step].indices) for step in range(steps)])
    ordered = seen[np.argsort(examples.lengths(seen), kind="stable")]
    groups = np.split(ordered, range(BATCH_SIZE, len(ordered), BATCH_SIZE))
    return [groups[number] for number in np.random.default_rng(0).permutation(len(groups))]


def fresh_model() -> Any:
    """A GPT-2 of gpt2-nano's size."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 512, "vocab_size": 2048}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id"), 0)
    return GPT2LMHeadModel(GPT2Config(**shape, **dropout, **ids))


def loss_sum(model: Any, rows: MicroBatch) -> torch.Tensor:
    """The loss in nats, summed over the label tokens."""
    logits = model(input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="sum")


class Run:
    """One way of feeding the model, and how it went."""

    def __init__(self, name: str, way: Way, steps: list[np.ndarray], examples: Examples) -> None:
        self.name, self._way, self._steps, self._examples = name, way, steps, examples
        self._model = fresh_model()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=3e-3)
        self._step = 0
        self.rates: list[float] = []  # real tokens per CPU second, a value per round

    def go(self, count: int) -> None:
        """Train for a few steps and note the rate."""
        started, tokens = time.process_time(), 0
        for numbers in self._steps[self._step : self._step + count]:
            labels = int((self._examples.lengths(numbers) - 1).sum())
            for rows in self._way(self._examples, numbers):
                (loss_sum(self._model, rows) / labels).backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            tokens += labels
        self._step += count
        self.rates.append(tokens / (time.process_time() - started))

    def loss(self, held_out: Examples) -> float:
        """Return the loss per token on some held-out examples."""
        numbers = np.arange(min(HELD_OUT, len(held_out)))
        with torch.no_grad():
            total = sum(float(loss_sum(self._model, rows)) for rows in packed(held_out, numbers))
        return total / int((held_out.lengths(numbers) - 1).sum())


def compare(text: list[str] | str, title: str, rounds: int, cache: Path) -> None:
    """Train four ways in turns and print a table."""
    source = request(path=text)
    corpus = source.tokenize(
        train_tokenizer(source.texts(), vocab_size=2048), cache_dir=cache, batch_size=BATCH_SIZE
    )
    steps = (rounds + 1) * STEPS
    batches = Batches(corpus.train, batch_size=BATCH_SIZE, max_length=MAX_LENGTH)
    order = [np.array(batches[step].indices) for step in range(steps)]
    runs = [
        Run(f"padded to {MAX_LENGTH}", to_max_length, order, corpus.train),
        Run(f"padded to the longest of {ROWS}", to_longest, order, corpus.train),
        Run("sorted by length", to_longest, buckets(corpus.train, batches, steps), corpus.train),
        Run("packed (llmexp)", packed, order, corpus.train),
    ]
    for _ in range(rounds + 1):  # the first warms up
        for run in runs:
            run.go(STEPS)
    ours = np.array(runs[-1].rates[1:])
    print(f"\n### {title}\n\n{steps * BATCH_SIZE:,} examples, {BATCH_SIZE} per step.\n")
    print("| way | real tokens/s | packed is faster by | held-out loss after the same examples |")
    print("|---|---|---|---|")
    for run in runs:
        rates = np.array(run.rates[1:])
        ratios = ours / rates
        spread = f"{np.median(ratios):.2f}x ({ratios.min():.2f} to {ratios.max():.2f})"
        loss = run.loss(corpus.validation)
        print(f"| {run.name} | {np.median(rates):,.0f} | {spread} | {loss:.4f} |", flush=True)


# -- part 2: reading and tokenising -------------------------------------------------------------


def tokenise(tool: str, text: str, tokenizer_folder: str, cache: str) -> None:
    """Read and tokenise a file once with one tool; print seconds and MiB."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    if tool == "datasets":
        import datasets

        datasets.disable_progress_bars()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins here
    started, worked = time.perf_counter(), time.process_time()
    if tool == "datasets":
        lines = datasets.load_dataset("text", data_files=text, split="train", cache_dir=cache)
        found = lines.map(
            lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"]
        )
        examples = len(found)
    else:
        corpus = request(path=text).tokenize(tokenizer, cache_dir=Path(cache))
        examples = len(corpus.train) + len(corpus.validation)
    times = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - worked}
    mebibytes = status("VmHWM") - before
    print(json.dumps({**times, "mebibytes": mebibytes, "examples": examples}))


def status(name: str) -> float:
    """Return an entry of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def compare_tokenising(text: Path, copies: int, turns: int, folder: Path) -> None:
    """Tokenise a large file with both tools in turns and print a table."""
    large = folder / "large.txt"
    with large.open("wb") as file:
        for _ in range(copies):
            file.write(text.read_bytes())
    megabytes = large.stat().st_size / 1e6
    train_tokenizer(request(path=str(text)).texts(), vocab_size=2048).save_pretrained(folder)
    found: dict[str, list[dict[str, float]]] = {"datasets": [], "llmexp": []}
    for turn in range(turns):
        for tool, results in found.items():
            cache = folder / f"{tool}-{turn}"
            command = [sys.executable, __file__, "--text", str(text), "--tokenise", tool]
            command += [str(large), str(folder), str(cache)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(told.splitlines()[-1]))
    print(f"\n### Reading and tokenising {megabytes:.0f} MB ({copies} copies of {text.name})\n")
    print(
        f"In turns, {turns} each; `datasets.map` keeps the blank lines and appends no end-of-text,"
    )
    print("llmexp also hashes, splits and writes a verified store.\n")
    print("| tool | MB per CPU second | MB/s by the clock | peak memory beyond the imports, MiB |")
    print("|---|---|---|---|")
    for tool, results in found.items():
        rates = [
            ", ".join(f"{megabytes / result[clock]:.2f}" for result in results)
            for clock in ("cpu", "seconds")
        ]
        peak = max(result["mebibytes"] for result in results)
        print(f"| {tool} | {rates[0]} | {rates[1]} | {peak:.0f} |")
    ratios = [
        f"{theirs['cpu'] / ours['cpu']:.2f}x"
        for theirs, ours in zip(found["datasets"], found["llmexp"], strict=True)
    ]
    print(f"\nllmexp is faster by {', '.join(ratios)} (CPU seconds).")


def main() -> None:
    """Run both parts and print a page of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="read by lines")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--copies", type=int, default=100)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--tokenise", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if given.tokenise:
        tokenise(*given.tokenise)
        return
    import datasets
    import tokenizers
    import transformers

    print("# Packing and tokenising\n")
    print(
        f"{date.today()}, Python {platform.python_version()}, torch {torch.__version__}, ", end=""
    )
    print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, ", end="")
    print(f"datasets {datasets.__version__}; {platform.machine()} CPU, ", end="")
    print("one thread, CPU seconds. Command: `python benchmarks/packing.py --text FILE`.")
    with tempfile.TemporaryDirectory() as folder:
        lines = [line for line in sample_lines() if line.strip()][:2000]
        short = Path(folder) / "short.txt"
        short.write_text("\n".join(lines))
        compare(str(short), "2,000 short lines (of the shipped sample)", given.rounds, Path(folder))
        compare(str(given.text), f"{given.text.name}, by line", given.rounds, Path(folder))
        compare_tokenising(given.text, given.copies, given.turns, Path(folder))


def sample_lines() -> Iterator[str]:
    """The lines of the shipped sample."""
    for path in sorted((ROOT / "llmexp" / "data" / "sample").glob("part_*.txt")):
        yield from path.read_text().splitlines()


if __name__ == "__main__":
    main()
