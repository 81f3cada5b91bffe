"""What the commands share: `key=value` arguments, and how a command ends."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmexp.config import nearest, refuse
from llmexp.errors import RequestError, RunError


def command(body: Callable[[], None]) -> None:
    """Run `body`: a mistake of the user ends it with its exit code and no traceback; ours keep
    theirs."""
    try:
        body()
    except (RequestError, RunError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left
        sys.stderr.close()
        sys.exit(141)


def arguments(
    given: Sequence[str],
    defaults: Mapping[str, Any],
    *,
    required: Sequence[str] = (),
    usage: str | None = None,
) -> dict[str, Any]:
    """Read `key=value` arguments over `defaults`, each value with its default's type.

    Raises RequestError with all mistakes; `--help` prints `usage` and the keys, and exits.
    """
    if "--help" in given or "-h" in given:
        print(usage)
        for key, value in defaults.items():
            print(f"  {key}={'...' if value is None else value}")
        sys.exit(0)
    values, mistakes = dict(defaults), []
    for argument in given:
        key, equals, text = argument.partition("=")
        if not equals:
            mistakes.append(f"{argument} is not of the form key=value")
        elif key not in defaults:
            mistakes.append(f"{key} is no argument of this command{nearest(key, defaults)}")
        else:
            kind = type(defaults[key]) if defaults[key] is not None else str
            try:
                values[key] = kind(text)
            except ValueError:
                mistakes.append(
                    f"{argument} does not hold: {key} must be "
                    f"{'a whole number' if kind is int else 'a number'}"
                )
    mistakes += [f"{key}=... is needed" for key in required if values[key] is None]
    refuse(mistakes)
    return values


def model_folder(run: Path, which: str) -> Path:
    """Return the folder of a run's `best` or `final` model, or `run` itself if it holds a model.

    Raises RequestError where there is none.
    """
    if (run / "config.json").is_file():
        return run
    folder = run / which
    if (folder / "config.json").is_file():
        return folder
    others = [path.parent.name for path in sorted(run.glob("*/config.json"))]
    cure = f"use which={others[0]}" if others else "is it a run folder, and has it validated once?"
    raise RequestError(
        f"{run} holds no {which}/ model: {cure}"
        if run.is_dir()
        else f"the folder {run} does not exist"
    )


def saved_settings(run: Path) -> dict[str, Any]:
    """Return the resolved settings of the run in `run`. Raises RequestError where it is no run
    folder."""
    import yaml

    path = run / ".hydra" / "config.yaml"
    if not path.is_file():
        raise RequestError(f"{run} is no run folder: it holds no .hydra/config.yaml")
    settings: dict[str, Any] = yaml.safe_load(path.read_text())
    return settings
