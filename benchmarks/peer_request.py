"""What the command line of benchmarks/peers.py may ask for."""

import argparse
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from pathlib import Path

from peer_table import TITLES
from peer_work import MODELS, WORKS

PRECISIONS = "fp32", "bf16"  # as in peer_limit.py, which imports torch


def asked(usage: str | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=some_of(WORKS), default="a,b,c,d")
    parser.add_argument("--precision", type=some_of(PRECISIONS), default="fp32,bf16")
    parser.add_argument("--dropout", type=probabilities, default="0.1,0")
    parser.add_argument("--peers", type=some_of(TITLES), default=",".join(TITLES))
    parser.add_argument("--model", choices=sorted(MODELS), default="gpt2")
    parser.add_argument("--steps", type=at_least(2), help="of each run; else what suits the work")
    parser.add_argument("--rounds", type=at_least(1), default=2)
    parser.add_argument("--every", type=at_least(1), help="steps between two rows; 1, on a GPU 5")
    parser.add_argument("--text", type=existing, help="a long text; the shipped sample")
    parser.add_argument("--tokenizer", type=tokenizer, help="a folder; trained on the text")
    parser.add_argument("--folder", type=existing, help="where runs may write; a temporary folder")
    parser.add_argument("--smallest", action="store_true", help="does it start?")
    parser.add_argument("--here", action="store_true", help="install nothing, take what is here")
    parser.add_argument("--output", type=creatable, help="a file for the tables")
    given = parser.parse_args()
    if given.smallest:
        given.model = "smallest"
    if given.output:
        given.output.unlink(missing_ok=True)
    return given


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what reads names of `known`, with commas between."""

    def read(words: str) -> list[str]:
        found = words.split(",")
        if unknown := [word for word in found if word not in known]:
            raise ArgumentTypeError(f"no {' or '.join(unknown)} here, only {', '.join(known)}")
        return found

    return read


def probabilities(words: str) -> list[float]:
    """Read probabilities of dropout, with commas between."""
    try:
        found = [float(word) for word in words.split(",")]
    except ValueError as problem:
        raise ArgumentTypeError(str(problem)) from None
    if not all(0 <= probability < 1 for probability in found):
        raise ArgumentTypeError(f"{words} is not within [0, 1)")
    return found


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is not below `least`."""

    def read(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise ArgumentTypeError(f"{word} is no whole number of at least {least}")
        return int(word)

    return read


def existing(word: str) -> Path:
    """Read the name of a file or folder that is there."""
    if not Path(word).exists():
        raise ArgumentTypeError(f"{word} does not exist")
    return Path(word).resolve()


def creatable(word: str) -> Path:
    """Read the name of a file in a folder that is there."""
    if not Path(word).resolve().parent.is_dir():
        raise ArgumentTypeError(f"the folder of {word} does not exist")
    return Path(word)


def tokenizer(word: str) -> Path:
    """Read the name of a folder with a tokenizer of GPT-2's kind."""
    folder = existing(word)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ArgumentTypeError(f"{word} holds neither tokenizer.json nor vocab.json")
    return folder
