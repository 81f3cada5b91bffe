"""Where the contestants of benchmarks/peers.py are installed."""

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / ".peers"
PACKAGES = {  # what each contestant needs beside torch
    "tutorial": ["transformers"],
    "nanogpt": ["safetensors"],
    "trainer": ["transformers", "accelerate"],
    "trl": ["trl"],
    "litgpt": ["litgpt", "lightning"],
    "lightning": ["lightning", "transformers"],
}
NAMES = sorted({name for names in PACKAGES.values() for name in names} | {"torch", "numpy"})
ASK = f"""import importlib.metadata as metadata, json
found = {{}}
for name in {NAMES!r}:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))"""


@dataclass(frozen=True)
class Environment:
    """A Python, the versions of what is in it, and why a contestant is not."""

    python: str
    versions: dict[str, str]
    missing: dict[str, str]  # contestant: reason


def here() -> Environment:
    """Return the environment that this runs in, with what happens to be installed."""
    found = versions_in(sys.executable)
    return Environment(sys.executable, found, without(found, {}))


def own() -> Environment:
    """Return the environment of the peers, installed on first use.

    With the versions of torch and transformers that llmexp runs on. Where nothing can be
    installed, the one that this runs in.
    """
    python = FOLDER / "bin" / "python"
    wanted = {name: version(name).partition("+")[0] for name in ("torch", "transformers")}
    told = FOLDER / "installed.json"
    if told.is_file() and (known := json.loads(told.read_text()))["wanted"] == wanted:
        problems = known["problems"]
    else:
        problems = install(python, wanted)
        if "everything" in problems:
            print(f"nothing can be installed ({problems['everything']}): using what is here")
            return here()
        told.write_text(json.dumps({"wanted": wanted, "problems": problems}))
    found = versions_in(str(python))
    return Environment(str(python), found, without(found, problems))


def install(python: Path, wanted: dict[str, str]) -> dict[str, str]:
    """Make the environment; return what could not be installed, and why."""
    print(f"installing the peers into {FOLDER}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    pins = [f"{name}=={number}" for name, number in wanted.items()]
    constraints = FOLDER / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    if why := attempt([*pip, *pins, "numpy", "safetensors"]):
        return {"everything": why}
    problems = {peer: attempt([*pip, *names]) for peer, names in PACKAGES.items()}
    return {peer: why for peer, why in problems.items() if why}


def attempt(command: list[str]) -> str:
    """Run a command; return the last line of what it complains about, or nothing."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return errors[-1] if errors else f"exit code {done.returncode}"


def versions_in(python: str) -> dict[str, str]:
    """Return the versions of the packages that matter, in another Python."""
    told = subprocess.run([python, "-c", ASK], check=True, capture_output=True, text=True, cwd="/")
    found: dict[str, str] = json.loads(told.stdout)
    return found


def without(found: dict[str, str], problems: dict[str, str]) -> dict[str, str]:
    """Return the contestants that cannot run, and why."""
    reasons = dict(problems)
    for peer, names in PACKAGES.items():
        if absent := [name for name in names if name not in found]:
            reasons.setdefault(peer, f"{', '.join(absent)} not installed")
    return reasons
