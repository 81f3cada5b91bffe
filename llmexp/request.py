"""The command line of `train` and `plan`: read and checked before Hydra makes a folder.

Every plain override is composed with `++`, so that an unknown key becomes part of the config
instead of Hydra's first and only error, and llmexp/config.py can name all mistakes at once.
"""

import os
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmexp import config
from llmexp.errors import RequestError
from llmexp.rules import PART_RULES, RULES

_HERE = Path(__file__).resolve().parent
CONF = next(
    folder
    for folder in (_HERE.parent / "conf", _HERE / "conf")
    if (folder / "train.yaml").is_file()
)

PATCHES = ("hw", "experiment", "sweep")  # groups, also where their folder is empty


def run_dir(name: str | None, date: str, clock: str, model: str, data: str) -> str:
    """Return the folder of a run: outputs/<name>, or one of its own by date, time, model and
    data."""
    if name is not None:
        return f"outputs/{name}"
    slug = "-".join(
        "".join(c if c.isalnum() or c in "._" else "-" for c in str(part)) for part in (model, data)
    )
    return f"outputs/{date}/{clock}-{slug[-80:].lstrip('.-')}"


OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)


def prepare(argv: Sequence[str]) -> list[str]:
    """Check a command line, and complete one that resumes a run with what that run was asked for.

    Returns the command line for Hydra, which wants the settings in one row, after the flags or
    before them. Raises RequestError with all mistakes.
    """
    given = _read(argv)
    overrides = list(given.overrides)
    flags = [argument for argument in argv if argument not in overrides]
    if given.help or given.hydra_help or given.shell_completion or given.info:
        return overrides + flags
    refuse_several_processes(given.multirun)
    completed = _resumed(overrides)
    check(completed, given)
    return flags + completed


def _read(argv: Sequence[str]) -> Namespace:
    """Tell flags from settings, in whatever order. Raises RequestError for what is no flag."""
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # else it ends the process in its words
    given, unknown = parser.parse_known_intermixed_args(list(argv))
    if unknown:
        flag = unknown[0].partition("=")[0]
        flags = [
            name for action in parser._actions for name in action.option_strings if "--" in name
        ]
        settings = [*RULES, *PART_RULES]
        meant = config.nearest(flag.strip("-"), settings) or config.nearest(flag, flags)
        _refuse(f"there is no flag {flag}{meant}")
    return given


def _refuse(message: str) -> NoReturn:
    raise RequestError(
        f"{message}\nSettings are written without dashes, as in train.epochs=3; --hydra-help names "
        "the flags"
    )


def refuse_several_processes(multirun: bool) -> None:
    """Refuse what torchrun starts: one sweeper per process, or several processes for one run."""
    if multirun and "RANK" in os.environ:
        raise RequestError(
            "torchrun with -m would start one sweep per process: start the sweep without torchrun"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: llmexp trains on one device in one process, "
            "and several would "
            "each write the same run: start it without torchrun"
        )


def check(overrides: Sequence[str], given: Any) -> None:
    """Compose what is asked for and refuse it with all its mistakes, each with the nearest right
    thing."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as problem:
        raise RequestError(
            f"{problem}\nA value with spaces, commas, colons or brackets wants quotes twice: "
            "'key=\"a, b\"'"
        ) from None
    mistakes: list[str] = []
    folders = [CONF, *([Path(given.config_dir).absolute()] if given.config_dir else [])]
    lines = [line for override in parsed for line in _forced(override, folders, mistakes)]
    searchpath = [f"hydra.searchpath=[file://{folder}]" for folder in folders[1:]]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose(given.config_name or "train", [*lines, *searchpath])
        settings = resolved(composed)
    except (HydraException, OmegaConfBaseException) as problem:
        config.refuse([*mistakes, str(problem)])
        raise
    mistakes += _swept(parsed, settings)
    if given.multirun and settings["train"].get("max_steps") and _searches_batch_size(parsed):
        mistakes.append(
            f"train.max_steps={settings['train']['max_steps']} together with a searched "
            "train.batch_size gives large batches more data than small ones: use train.epochs, so "
            "that every trial sees the same examples"
        )
    try:
        config.check(settings, parts=not given.cfg)
    except RequestError as problem:
        if not mistakes:
            raise
        mistakes.append(str(problem))
    config.refuse(mistakes)


def resolved(composed: DictConfig) -> dict[str, Any]:
    """Return the settings as plain values, interpolations filled in.

    Raises RequestError where a value is missing, and where one reads a secret from the environment.
    """
    leaves = dict(config.flat(_plain(composed, resolve=False)))
    secrets = [
        name
        for value in leaves.values()
        for name in re.findall(r"oc\.env:\s*(\w+)", str(value))
        if config.SECRET.search(name)
    ]
    missing = [key for key, value in leaves.items() if value == "???"]
    config.refuse(
        [
            f"${{oc.env:{name}}} would write a secret to disk: no setting needs it, the libraries "
            "read the environment themselves"
            for name in secrets
        ]
        + [f"{key} has no value yet: give it one, as in {key}=..." for key in missing]
    )
    return _plain(composed, resolve=True)


def _plain(composed: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """Return the settings without Hydra's own."""
    settings = OmegaConf.to_container(composed, resolve=resolve)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items() if key != "hydra"}


def _forced(override: Override, folders: list[Path], mistakes: list[str]) -> Iterator[str]:
    """Yield what to compose for one override; note an option that its group does not have."""
    key, line = override.key_or_group, override.input_line or ""
    groups = [folder / key.split("@")[0] for folder in folders]
    if key.startswith("hydra"):
        yield line
    elif override.is_delete():
        mistakes.append(
            f"~{key}: every setting is needed and none can be deleted: give it another value, as "
            "in "
            f"{key}=..."
        )
    elif any(group.is_dir() for group in groups) or key in PATCHES:
        options = sorted({path.stem for group in groups for path in group.glob("*.yaml")})
        wrong = [v for v in _values(override) if v not in (*options, None) and "/" not in str(v)]
        mistakes += [
            f"{key}={v} does not exist{config.nearest(str(v), options) or '.'} "
            f"There are: {', '.join(options) or 'none'}"
            for v in wrong
        ]
        if not wrong:
            yield f"{key}={_first(override)}"
    else:
        yield f"++{key}={_first(override)}"


def _first(override: Override) -> str:
    """Return the value of an override, of a sweep the first, as the command line writes it."""
    if not override.is_sweep_override():
        return override.get_value_string()
    if isinstance(override.value(), (IntervalSweep, Glob)):
        return str(next(iter(_values(override)), "null"))
    return next(override.sweep_string_iterator())


def _values(override: Override) -> list[Any]:
    """Return the values of an override: one, those it sweeps over, or the ends of an interval."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [value.start, value.end]
    if isinstance(value, Glob):  # finds its own options
        return []
    values = override.sweep_iterator() if override.is_sweep_override() else [value]
    return [getattr(v, "text", v) for v in values]  # a quoted string keeps its quotes apart


def _swept(parsed: Sequence[Override], settings: dict[str, Any]) -> list[str]:
    """Check every value that a sweep would try against the law of its key."""
    rules = {**RULES, **PART_RULES}
    return [
        f"{override.key_or_group}={config.shown(value)} does not hold: it must be "
        f"{rules[override.key_or_group].law}"
        for override in parsed
        if override.is_sweep_override() and override.key_or_group in rules
        for value in _values(override)
        if not rules[override.key_or_group].holds(value)
    ]


def _searches_batch_size(parsed: Sequence[Override]) -> bool:
    return any(o.key_or_group == "train.batch_size" and o.is_sweep_override() for o in parsed)


def _resumed(overrides: list[str]) -> list[str]:
    """Complete resume=<run folder or checkpoint> with the run's own overrides; later ones win."""
    wanted = [o.removeprefix("resume=") for o in overrides if o.startswith("resume=")]
    if not wanted or wanted[-1] in ("auto", "null", ""):
        return overrides
    folder = run_folder(Path(wanted[-1].strip("'\"")))
    saved = OmegaConf.load(folder / ".hydra" / "overrides.yaml")
    kept = {str(line).partition("=")[0].lstrip("+~"): str(line) for line in saved}
    kept |= {line.partition("=")[0].lstrip("+~"): line for line in overrides}
    return [line for key, line in kept.items() if key != "run.name"] + [
        f"hydra.run.dir={_quoted(folder)}"
    ]


def run_folder(resume: Path) -> Path:
    """Return the run folder of what `resume` names: itself, or that of the checkpoint.

    Raises RequestError where there is no run.
    """
    folder = resume.parent.parent if resume.parent.name == "checkpoints" else resume
    if not (folder / ".hydra" / "overrides.yaml").is_file():
        what = "is no run folder: it holds no .hydra/overrides.yaml"
        if not folder.exists():
            what = "does not exist"
        elif (folder / ".lock").exists():
            what = "was stopped before it began: start it with the command it was started with"
        raise RequestError(f"resume={resume}: {folder} {what}")
    return folder


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
