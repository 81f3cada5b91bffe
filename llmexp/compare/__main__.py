"""python -m llmexp.compare RUN... | multirun/<sweep>: runs side by side.

Prints a table, and writes one HTML file with curves, settings and samples; it opens in any browser
and needs no network.
"""

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

from llmexp.command import command
from llmexp.errors import RequestError


def main() -> None:
    """Compare the runs that the command line names: exit code 2 if there is none."""
    command(_compare)


def _compare() -> None:
    given = _arguments().parse_args()
    from llmexp import durable
    from llmexp.compare import page, runs, table

    try:
        told = table.comparison(runs.read(runs.find(given.runs)))
    except OSError as error:
        raise RequestError(f"{error.filename} cannot be read: {error.strerror}") from None
    forms: dict[str, Callable[[table.Comparison], str]] = {
        "text": table.text,
        "markdown": table.markdown,
        "csv": table.comma_separated,
        "json": table.as_json,
    }
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may hold what it cannot say
        sys.stdout.reconfigure(errors="backslashreplace")
    print(forms[given.form](told))
    goal = given.html or (given.runs[0] if _is_sweep(given.runs) else Path()) / "compare.html"
    try:
        durable.write_text(goal, page.html(told))
    except OSError as error:
        raise RequestError(
            f"cannot write {goal}: {error.strerror}. Choose another place with --html FILE"
        ) from None
    print(f"\nCurves, settings and samples: {goal}", file=sys.stderr)


def _is_sweep(places: list[Path]) -> bool:
    return len(places) == 1 and not (places[0] / ".hydra" / "config.yaml").is_file()


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llmexp.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of runs")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="where the page goes (compare.html)"
    )
    forms = parser.add_mutually_exclusive_group()
    for form in ("csv", "json", "markdown"):
        forms.add_argument(
            f"--{form}", dest="form", action="store_const", const=form, help="instead of the table"
        )
    parser.set_defaults(form="text")
    return parser


if __name__ == "__main__":
    main()
