"""The rules of the house, as tests: who imports what, how long things are, what may not be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "llmexp").rglob("*.py"))
COMMANDS = {"train", "request", "plan", "job", "command"}


def module(path: Path) -> str:
    return path.relative_to(ROOT / "llmexp").with_suffix("").as_posix()


def imports(path: Path, *, top: bool = False) -> set[str]:
    """Return the top-level packages (or llmexp.x) that a file imports; `top`: at import time
    only."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top else list(ast.walk(tree))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return names | {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("hydra", ("train", "request", "plan", "sweep/")),
        ("omegaconf", ("train", "request", "plan", "sweep/")),
        ("wandb", ("logger/",)),
        ("optuna", ("sweep/",)),
        ("transformers", ("model", "data/", "memory/", "cpu/", "startup")),
        ("datasets", ("data/",)),
        ("pickle", ()),
    ],
)
def test_a_library_is_imported_only_where_it_belongs(
    package: str, allowed: tuple[str, ...]
) -> None:
    found = {module(path) for path in FILES if package in packages(imports(path))}
    assert not [name for name in found if not name.startswith(allowed or ("?",))]


def test_the_engine_speaks_pytorch_only() -> None:
    outside = {"hydra", "omegaconf", "wandb", "transformers", "datasets", "optuna"}
    seen: set[str] = set()
    waiting = ["llmexp.engine"]
    while waiting:
        name = waiting.pop()
        path = ROOT / Path(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        found = imports(path, top=True)
        assert not packages(found) & outside, name
        waiting += [n for n in found if n.startswith("llmexp")]
    assert {"llmexp.engine", "llmexp.loss", "llmexp.optimizer"} <= seen


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{module(path)}.{node.name}: {node.end_lineno - node.lineno + 1}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert not long


def test_no_file_is_longer_than_its_one_idea() -> None:
    assert not [module(path) for path in FILES if len(path.read_text().splitlines()) > 350]


def test_no_grab_bags() -> None:
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


def test_no_pickle_and_no_torch_load_anywhere() -> None:
    for path in FILES:
        text = path.read_text()
        assert "torch.load(" not in text, path
        assert "torch.save(" not in text, path


def test_help_and_completion_import_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['train', '--cfg', 'job']\n"
        "from llmexp.train import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'wandb', 'optuna', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout[-300:] + done.stderr
