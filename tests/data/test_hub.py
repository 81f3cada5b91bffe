"""Hugging Face datasets: no split is guessed, and without a hub the answer comes at once."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmexp.data import Corpus, Source
from llmexp.errors import RequestError

Make = Callable[..., Corpus]
Load = Callable[..., Source]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save a dataset of some splits, or with None of one table, as save_to_disk does."""
    datasets = pytest.importorskip("datasets")

    def save(*splits: str | None) -> Path:
        parts = {
            split: datasets.Dataset.from_dict({"text": [f"{split} {n}" for n in range(30)]})
            for split in splits
        }
        folder = tmp_path / "saved"
        (datasets.DatasetDict(parts) if None not in parts else parts[None]).save_to_disk(folder)
        return folder

    return save


def test_a_table_without_splits_refuses_to_be_asked_for_one(source: Load, saved: Any) -> None:
    folder = saved(None)
    assert source("hf", path=str(folder)).shape == "text"
    with pytest.raises(RequestError, match="has no splits, it is one table of 30 rows: .*@test"):
        source("hf", path=f"{folder}@test")


def test_a_missing_split_is_told_with_those_there_are(
    source: Load, saved: Any, corpus: Make, texts: Any
) -> None:
    folder = saved("first", "second")
    assert texts(corpus("hf", path=f"{folder}@second"))[0] == "second 0"
    for path, split in ((f"{folder}@third", "third"), (str(folder), "train")):
        with pytest.raises(RequestError, match=f"no split '{split}', it has first, second: name"):
            source("hf", path=path)
    with pytest.raises(RequestError, match="has no subsets: leave :part out"):
        source("hf", path=f"{folder}:part@first")


def test_a_damaged_row_is_told(corpus: Make, saved: Any) -> None:
    folder = saved(None)
    file = next(folder.glob("*.arrow"))
    file.write_bytes(file.read_bytes().replace(b"None 7", b"None \xff"))
    with pytest.raises(RequestError, match=r"saved: damaged after row \d+"):
        corpus("hf", path=str(folder))


def test_a_path_that_is_no_dataset_says_what_it_is(source: Load, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(RequestError, match="is a file, .*set data=parquet"):
        source("hf", path=f"{tmp_path}/data.parquet")
    with pytest.raises(RequestError, match=f"the folder {tmp_path}/none does not exist"):
        source("hf", path=f"{tmp_path}/none@train")
    with pytest.raises(RequestError, match="reads one dataset, OWNER/NAME:SUBSET@SPLIT"):
        source("hf", path=["one/set", "other/set"])


PROGRAM = """
import sys
from conftest import settings
from llmexp.data import load
from llmexp.errors import RequestError
try:
    load(**settings("hf", path="nobody/nothing"))
except RequestError as problem:
    print(problem)
"""


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                asked.append(connection)
                connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        place = f"http://127.0.0.1:{server.getsockname()[1]}"
        folders = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
        told = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {folders}\n{PROGRAM}"],
            env={"HF_ENDPOINT": place, "HF_HOME": str(tmp_path), "PATH": "", "no_proxy": "*"},
            capture_output=True,
            text=True,
            check=True,
        )
        server.shutdown(socket.SHUT_RDWR)
    assert "hub cannot be reached, and no copy is here: bring it" in told.stdout
    assert len(asked) == 1
