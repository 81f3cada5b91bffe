"""python benchmarks/curve.py --train FILE --validation FILE [--tokenizer FOLDER]: is the curve the
peers' curve?

gpt2-nano's shape, trained by the real command and by Hugging Face's Trainer, three seeds each. Both
start from the same weights and see the same rows in the same steps, with the same AdamW, schedule,
clipping and dropout, and are judged by the same rows after the same steps. What is left to differ
are the random numbers of dropout, and everything that llmexp computes in its own way. A last pair
without dropout has no chance in it: what differs there is rounding.

Trainer tokenises and cuts the text by itself here; its rows must be those of llmexp. It wants
`pip install accelerate`. Writes benchmarks/results/curve.md and curve.png.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from curve_page import Curve, Pair, draw, page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DROPOUT = 0.1  # as GPT-2 was trained
RATE, DECAY, CLIP, WARMUP = 3e-3, 0.01, 1.0, 0.1  # conf/: model, optimizer, train, schedule
HELD_OUT = 16  # rows


def main() -> None:
    """Train, print the page and write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True, help="a text, such as WikiText-2's")
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="folder; without it, one of 2,048 entries")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=4, help="per step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--every", type=int, default=20, help="steps between validations")
    parser.add_argument("--seeds", type=int, default=3, help="with dropout")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as name:
        work = Work.prepare(given, Path(name))
        pairs = [work.pair(seed, DROPOUT) for seed in range(1, given.seeds + 1)]
        exact = work.pair(1, 0.0)
        told = about(work)
    report = page(told, pairs, exact)
    print(report)
    given.out.mkdir(exist_ok=True)
    (given.out / "curve.md").write_text(report + "\n")
    draw(given.out / "curve.png", pairs, exact)


@dataclass(frozen=True)
class Work:
    """What both train on."""

    given: argparse.Namespace
    folder: Path
    corpus: Any  # as llmexp has it
    tokenizer: Any
    held_out: list[list[int]]  # rows, as Trainer's side has cut them
    rows: list[list[int]]  # for training, likewise

    @classmethod
    def prepare(cls, given: argparse.Namespace, folder: Path) -> "Work":
        """Tokenise and cut by both ways; raises AssertionError where the rows differ."""
        from llmexp.model import Model, quiet

        quiet()
        named = str(given.tokenizer) if given.tokenizer else None
        lines = given.train.read_text(encoding="utf-8").split("\n")
        kind = Model("gpt2-nano", None, named, {"n_layer": 4}, DROPOUT, RATE)
        tokenizer = kind.load_tokenizer(lines, vocab_size=2048)
        tokenizer.save_pretrained(folder / "tokenizer")
        wanted = HELD_OUT * given.length + 1
        rows = cut(tokenizer, given.train, folder / "train.txt", length=given.length)
        held_out = cut(
            tokenizer, given.validation, folder / "held_out.txt", length=given.length, upto=wanted
        )
        if given.steps > (most := len(rows) // given.rows):
            sys.exit(
                f"{given.train} fills {most:,} steps: Trainer would cut the next epoch elsewhere"
            )
        corpus = tokenised(folder, given.length)
        for examples, others in ((corpus.train, rows), (corpus.validation, held_out)):
            assert [example.input_ids.tolist() for example in examples] == others
        return cls(given, folder, corpus, tokenizer, held_out, rows)

    def pair(self, seed: int, dropout: float) -> Pair:
        """Train with both from the same weights."""
        start = self.folder / f"start-{seed}"
        if not start.exists():
            begin(start, self.tokenizer, seed)
        ours = self.by_llmexp(start, seed, dropout)
        theirs = by_trainer(self, start, seed, dropout)
        assert list(ours) == list(theirs), "validated at other steps"
        pair = Pair(seed, ours, theirs)
        told = f"seed {seed}, dropout {dropout}: {ours[max(ours)]:.4f}, {theirs[max(ours)]:.4f}"
        print(told, file=sys.stderr, flush=True)
        return pair

    def by_llmexp(self, start: Path, seed: int, dropout: float) -> Curve:
        """Train by the command; return the validation losses."""
        given, per_epoch = self.given, math.ceil(len(self.rows) / self.given.rows)
        name = f"{seed}-{dropout}"
        settings = [
            *("model=gpt2-nano", f"model.weights={start}", f"model.dropout={dropout}"),
            *("data=text", f"data.path={self.folder / 'train.txt'}", "data.unit=block"),
            *(f"data.validation_path={self.folder / 'held_out.txt'}", "data.cache_dir=cache"),
            *(f"data.max_length={given.length}", f"train.batch_size={given.rows}"),
            *(f"train.micro_batch_size={given.rows}", f"train.max_steps={given.steps}"),
            # a little less than so many steps, so that rounding makes it no step more
            f"train.validate_every={(given.every - 1e-3) / per_epoch}",
            *("precision=fp32", "logger=none", f"seed={seed}", f"run.name={name}"),
        ]
        subprocess.run(
            [sys.executable, "-m", "llmexp.train", *settings, "samples.prompts=[]"],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        text = (self.folder / "outputs" / name / "metrics.jsonl").read_text()
        found = [json.loads(line) for line in text.splitlines()]
        return {r["train/global_step"]: r["eval/loss"] for r in found if "eval/loss" in r}

    def order(self, seed: int) -> list[list[int]]:
        """Return the rows of every step, one step after the other, as llmexp draws them."""
        from llmexp.data import Batches

        size, length = self.given.rows, self.given.length
        batches = Batches(self.corpus.train, batch_size=size, max_length=length, seed=seed)
        steps = range(self.given.steps)
        return [self.rows[number] for step in steps for number in batches[step].indices]


# -- the text, as Trainer's side sees it --------------------------------------------------------


def cut(
    tokenizer: Any, source: Path, goal: Path, *, length: int, upto: float = math.inf
) -> list[list[int]]:
    """Join the lines of a text, each with an end of text, and cut that into rows.

    A row is `length` inputs and the token after the last, which begins the next row. Writes the
    lines that bring the first `upto` tokens to `goal`.
    """
    ids: list[int] = []
    with goal.open("w", encoding="utf-8") as file:
        for line in source.read_text(encoding="utf-8").split("\n"):
            if line.strip() and len(ids) < upto:
                ids += [*tokenizer(line)["input_ids"], tokenizer.eos_token_id]
                file.write(line + "\n")
    return [ids[first : first + length + 1] for first in range(0, len(ids) - 1, length)]


def tokenised(folder: Path, length: int) -> Any:
    """Return the same text as llmexp reads it."""
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer

    from llmexp.data import load

    settings: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "data" / "text.yaml"))
    del settings["_target_"]
    settings |= {"unit": "block", "max_length": length, "cache_dir": str(folder / "cache")}
    settings |= {"path": str(folder / "train.txt")}
    source = load(**settings | {"validation_path": str(folder / "held_out.txt")})
    return source.tokenize(AutoTokenizer.from_pretrained(folder / "tokenizer"))


# -- Hugging Face's Trainer ---------------------------------------------------------------------


def begin(folder: Path, tokenizer: Any, seed: int) -> None:
    """Write fresh weights of gpt2-nano's shape and the tokenizer: where both start."""
    import torch
    from omegaconf import OmegaConf
    from transformers import GPT2Config, GPT2LMHeadModel

    page = OmegaConf.load(ROOT / "conf" / "model" / "gpt2-nano.yaml")
    shape = {**page.architecture, "vocab_size": len(tokenizer)}
    end = tokenizer.eos_token_id
    torch.manual_seed(seed)
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=end, eos_token_id=end)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def by_trainer(work: Work, start: Path, seed: int, dropout: float) -> Curve:
    """Train with Trainer; return the validation losses."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

    class Peer(Trainer):
        """Trainer with llmexp's warm-up, whose first step learns; its own begins at zero."""

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            total, rising = num_training_steps, round(WARMUP * num_training_steps)

            def multiplier(step: int) -> float:
                return (step + 1) / rising if step < rising else (total - step) / (total - rising)

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, multiplier)
            return self.lr_scheduler

    def collate(examples: list[dict[str, list[int]]]) -> dict[str, Any]:
        ids = [torch.tensor(example["input_ids"]) for example in examples]
        pad = torch.nn.utils.rnn.pad_sequence
        return {"input_ids": pad(ids, True), "labels": pad(ids, True, padding_value=-100)}

    given = work.given
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    trainer = Peer(
        model=GPT2LMHeadModel.from_pretrained(start, dtype=torch.float32, **rates),
        args=TrainingArguments(
            output_dir=str(work.folder / "trainer"),
            max_steps=given.steps,
            per_device_train_batch_size=given.rows,
            train_sampling_strategy="sequential",
            learning_rate=RATE,
            weight_decay=DECAY,
            max_grad_norm=CLIP,
            eval_strategy="steps",
            eval_steps=given.every,
            eval_on_start=True,
            save_strategy="no",
            logging_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=[{"input_ids": row} for row in work.order(seed)],
        eval_dataset=[{"input_ids": row} for row in work.held_out],
        data_collator=collate,
        preprocess_logits_for_metrics=lambda logits, labels: cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none"
        ),
        compute_metrics=lambda told: {
            "nats": float(told.predictions[told.label_ids[:, 1:] != -100].mean(dtype=np.float64))
        },
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    found = [row for row in trainer.state.log_history if "eval_nats" in row]
    return {row["step"]: row["eval_nats"] for row in found}


def about(work: Work) -> str:
    """Say what both were given."""
    given = work.given
    return f"""\
gpt2-nano's shape with a vocabulary of {len(work.tokenizer):,}; {given.steps:,} steps of \
{given.rows} rows of {given.length} tokens, drawn
from the {len(work.rows):,} rows of {given.train.name}; validated on {len(work.held_out)} rows of \
{given.validation.name}. AdamW, peak
learning rate {RATE}, weight decay {DECAY}, gradient norm clipped at {CLIP:g}, linear warm-up over \
{WARMUP:.0%} of the steps and
decay, dropout {DROPOUT}, fp32. Losses are nats per token."""


if __name__ == "__main__":
    main()
