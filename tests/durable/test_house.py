"""The fault tests only prove what goes through llmexp.durable: so everything that lasts does."""

import re
from pathlib import Path

import llmexp

WRITES = re.compile(
    r"""(?<!\bdurable)\.(write_text|write_bytes)\("""
    r"""|\bopen\([^)]*["'](r\+|[wax])"""
    r"""|\bos\.(replace|rename|truncate)\(|\bshutil\.(rmtree|move|copy\w*)\(|\bjson\.dump\("""
)
ELSEWHERE = {
    "sweep/process.py",  # what a child prints, which the child itself appends
    "sweep/storage.py",  # Optuna's journal, which Optuna itself appends
}


def test_no_other_module_writes_files() -> None:
    package = Path(llmexp.__file__).parent
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in package.rglob("*.py")
        if path.parent.name != "durable" and str(path.relative_to(package)) not in ELSEWHERE
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if WRITES.search(line) and ".lock" not in line  # a lock is no lasting file
    ]
    assert found == []
