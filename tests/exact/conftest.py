"""A folder with data to run in, and the digest of a run that nobody killed."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_runs import LINES, digest, train


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with lines.txt; runs that start in it share its cache."""
    folder = tmp_path_factory.mktemp("exact")
    (folder / "lines.txt").write_text("\n".join(LINES))
    return folder


@pytest.fixture
def here(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in that folder."""
    monkeypatch.chdir(corpus)
    yield corpus


@pytest.fixture(scope="session")
def whole(corpus: Path) -> dict[str, str]:
    """Return the digest of a run that nobody killed: outputs/whole."""
    before = Path.cwd()
    os.chdir(corpus)
    try:
        train("whole")
        return digest(Path("outputs/whole"))
    finally:
        os.chdir(before)
