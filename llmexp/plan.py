"""python -m llmexp.plan model=gpt2-large hw=24gb: how much GPU memory a run takes, with no GPU.

    python -m llmexp.plan --presets     every shipped model on every preset, as a markdown table

The arguments are those of llmexp.train. Nothing is loaded, downloaded or written but the numbers
of newly traced steps, which are kept in ~/.cache/llmexp.
"""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from llmexp.command import command
from llmexp.errors import RequestError


def main() -> None:
    """Print the memory plan of a run: exit code 0 if it fits, 2 if not, with plans that do."""
    command(_plan)


def _plan() -> None:
    given = sys.argv[1:]
    if "--help" in given or "-h" in given:
        print(__doc__)
        return
    flags = [argument for argument in given if argument.startswith("-")]
    if flags and given != ["--presets"]:
        raise RequestError(
            f"{flags[0]} does not hold here: a plan is of one run, so give key=value as to "
            "llmexp.train, without flags; or --presets alone, for all shipped models and presets"
        )
    if given == ["--presets"]:
        from llmexp.memory import ship

        for line in ship.table():
            print(line)
        return
    settings = composed(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    from llmexp.memory import planner

    device = None
    if settings["hw"]["budget_gib"] is None and settings["hw"]["device"] != "cpu":
        from llmexp.model import pick_device

        device = pick_device(settings["hw"]["device"])
    for line in planner.plan(settings, device=device, overrides=given).lines:
        print(line)


def composed(given: Sequence[str]) -> dict[str, Any]:
    """Compose what `llmexp.train` would be asked for. Raises RequestError with all mistakes."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from llmexp import request

    request.check(given, get_args_parser().parse_args(list(given)))
    try:
        with initialize_config_dir(str(request.CONF), version_base="1.3"):
            return request.resolved(compose("train", list(given)))
    except (HydraException, OmegaConfBaseException) as problem:
        raise RequestError(str(problem)) from None


if __name__ == "__main__":
    main()
