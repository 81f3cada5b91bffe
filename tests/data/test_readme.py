"""What the README says of data is so: its records have these shapes, its commands read them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmexp.data import Corpus, Source

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
ROWS = re.findall(r"^\| ([^|`]+) \| `(\{.*\})` \| `python -m llmexp.train (.*)` \|$", README, re.M)
PLAIN = re.search(r"```\n(User: .*?)\n```", README, re.S)


def test_the_table_has_every_shape() -> None:
    from llmexp.data.render import SHAPES

    named = {title.split(" (")[0] for title, *_ in ROWS}
    assert set(SHAPES) < named


@pytest.mark.parametrize(("title", "record", "command"), ROWS)
def test_a_command_reads_the_record_beside_it(
    source: Callable[..., Source],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    title: str,
    record: str,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = dict(word.split("=") for word in command.split())
    Path(given["data.path"]).write_text(f"{record}\n" * 3)
    columns = {k.split(".")[2]: v for k, v in given.items() if k.startswith("data.columns.")}
    loaded = source(given["data"], path=given["data.path"], columns=columns)
    assert loaded.shape == ("prompt and completion" if columns else title.split(" (")[0])


def test_the_plain_form_is_the_one_shown(
    corpus: Callable[..., Corpus], tokenizer: Any, tmp_path: Path
) -> None:
    assert PLAIN
    said = re.findall(r"(User|Assistant): (.*?)(?:\n|<\|endoftext\|>|$)", PLAIN[1])
    turns = [{"role": role.lower(), "content": content} for role, content in said]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": turns}))
    made = corpus("jsonl", path=str(path), validation_path=str(path))
    assert len(turns) == 4
    assert tokenizer.decode(made.train[0].input_ids) == PLAIN[1]
