"""A text larger than the memory it may take: tokenised, split, packed and read in little of it."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path

import torch, transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmexp.data import Batches, load
from llmexp.data.request import COLUMNS

vocabulary = {"<end>": 0, **{chr(97 + n): n + 1 for n in range(26)}}
backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
source = load(
    name="text", format="text", path=sys.argv[1], validation_path=None, example=sys.argv[3],
    unit=sys.argv[4], max_length=128, val_size=0.1, overlong="split", pack=True,
    duplicates=sys.argv[5], loss_on="completion", columns=dict.fromkeys(COLUMNS),
    encoding_errors="strict", drop_control=False, cache_dir=sys.argv[2],
)
corpus = source.tokenize(tokenizer, seed=1, batch_size=64)
tokenised = status("VmHWM") - before
batches = Batches(corpus.train, batch_size=64, max_length=128)
tokens = 0
for step in range(0, batches.steps_per_epoch, max(1, batches.steps_per_epoch // 5000)):
    tokens += sum(rows.input_ids.numel() for rows in batches[step].micro_batches(8))
print(tokenised, status("VmHWM") - before, len(corpus.train), tokens)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="wants Linux' memory peaks")
@pytest.mark.parametrize(
    ("example", "unit", "duplicates"),
    [("line", "example", "drop"), ("line", "block", "report"), ("file", "example", "report")],
)
def test_a_file_of_100_megabytes_takes_less_than_150(
    tmp_path: Path, example: str, unit: str, duplicates: str
) -> None:
    block = "".join(f"a b c d e f g {chr(97 + n % 26)} the end of line\n" for n in range(5000))
    path = tmp_path / "data.txt"
    with path.open("w") as file:
        for number in range(100_000_000 // len(block)):
            file.write(block.replace("the end", f"{number} end"))
    (tmp_path / "other.txt").write_text("a single line\n")  # a whole file for each side
    given = str(path) if example == "line" else f"{tmp_path}/*.txt"
    arguments = [given, str(tmp_path / "cache"), example, unit, duplicates]
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    assert float(told.stdout.split()[1]) < 150  # MiB beyond the imports
