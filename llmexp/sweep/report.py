"""What a sweep leaves: table, best command, best.yaml, optimization_results.yaml, a picture."""

import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from llmexp import durable
from llmexp.sweep.compose import Composer, is_free, leaves
from llmexp.sweep.outcome import best_loss, ranking, state, warnings
from llmexp.sweep.space import Space

ENOUGH = 10  # finished trials, below which importances say nothing
PATCHES = (
    "hw",
    "experiment",
    "sweep",
    "logger",
)  # groups whose choice an experiment file does not make


@dataclass
class Report:
    """Writes what is known of a study into the folder of its sweep."""

    name: str
    space: Space
    composer: Composer
    program: Sequence[str]  # what the best command starts with
    written: int | None = None  # the trial that best.yaml holds

    def command(self, trial: FrozenTrial) -> str:
        """Return the command that repeats a trial on its own."""
        return shlex.join([*self.program, *self.space.overrides(trial.params)])

    def update(self, study: optuna.Study, winner: FrozenTrial | None = None) -> None:
        """Write optimization_results.yaml and best.yaml, after every trial."""
        trials = study.get_trials(deepcopy=False)
        best = winner or next(iter(ranking(trials)), None)
        folder = self.composer.sweep_dir
        results: dict[str, Any] = {"name": "optuna", "study": self.name}
        if best is not None:
            results |= {
                "best_params": best.params,
                "best_value": best.value,
                "best_trial": best.number,
                "best_folder": best.user_attrs.get("folder"),
                "best_command": self.command(best),
            }
            if best.number != self.written:
                durable.write_text(folder / "best.yaml", self.experiment(best))
                self.written = best.number
        results["trials"] = dict(Counter(map(state, trials)))
        results["importances"] = importances(study)
        plain = json.loads(json.dumps(results))
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=sys.maxsize)
        durable.write_text(folder / "optimization_results.yaml", text)

    def lines(self, study: optuna.Study) -> list[str]:
        """Return the result in words: the table, what mattered, warnings, the best command."""
        trials = study.get_trials(deepcopy=False)
        ranked = ranking(trials)
        said = table(trials, list(self.space.searched))
        if found := importances(study):
            shares = ", ".join(f"{key} {share:.0%}" for key, share in found.items())
            said += ["", f"What mattered: {shares} (PED-ANOVA)"]
        for warning in warnings(trials, self.space):
            said += ["", f"Warning: {warning}"]
        if ranked:
            said += ["", f"Best: trial {ranked[0].number}, eval/loss {ranked[0].value:.4f}. Again:"]
            said += ["", f"    {self.command(ranked[0])}"]
        return said

    def experiment(self, trial: FrozenTrial) -> str:
        """Return a trial as a file for `experiment=`: its parts, and what differs from them."""
        composed = self.composer.compose(self.space.overrides(trial.params))
        chosen = composed.hydra.runtime.choices
        parts = {
            group: option
            for group, option in chosen.items()
            if option is not None and not group.startswith("hydra/") and group not in PATCHES
        }
        plain = self.composer.parts(parts)
        tree: dict[str, Any] = {"defaults": [{f"override /{g}": o} for g, o in parts.items()]}
        for key, value in leaves(composed).items():
            if not is_free(key) and (key not in plain or plain[key] != value):
                _put(tree, key, value)
        head = (
            "# @package _global_\n"
            f"# Trial {trial.number} of the sweep {self.name}: eval/loss {trial.value:.4f}.\n"
            "# Copy it to conf/experiment/best.yaml, then: python -m llmexp.train experiment=best\n"
        )
        return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def table(trials: Sequence[FrozenTrial], keys: Sequence[str]) -> list[str]:
    """Return the trials as a table, the best first, then by number."""
    order = {trial.number: place for place, trial in enumerate(ranking(trials))}
    rows = [["trial", "state", *keys, "eval/loss", "tokens/s", "peak GiB"]]
    for trial in sorted(trials, key=lambda t: (order.get(t.number, len(order)), t.number)):
        if trial.state != TrialState.WAITING:
            rows.append(
                [
                    str(trial.number),
                    state(trial),
                    *(_cell(trial.params.get(key), ".4g") for key in keys),
                    _cell(best_loss(trial), ".4f"),
                    _cell(trial.user_attrs.get("perf/tokens_per_second"), ",.0f"),
                    _cell(trial.user_attrs.get("memory/peak_gib"), ".2f"),
                ]
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]


def importances(study: optuna.Study) -> dict[str, float]:
    """Return the share of each key in what separates good trials from bad ones."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < ENOUGH or len(finished[0].params) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def picture(trials: Sequence[FrozenTrial], space: Space, path: Path) -> bool:
    """Draw the best losses over the first searched number, a line per choice of another key.

    Returns whether there was anything to draw. Pruned trials are hollow: they stopped on the way.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    numbers = [key for key, found in space.searched.items() if not hasattr(found, "choices")]
    axis = next(iter(numbers or space.searched))
    line = next((key for key in space.searched if key != axis), None)
    shown = [(t, best_loss(t)) for t in trials if axis in t.params and best_loss(t) is not None]
    if not shown:
        return False
    figure, plot = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for choice in sorted({str(t.params.get(line)) for t, _ in shown}, key=lambda c: (len(c), c)):
        own = sorted(
            (t.params[axis], loss, t) for t, loss in shown if str(t.params.get(line)) == choice
        )
        done = [(x, y) for x, y, t in own if t.state == TrialState.COMPLETE]
        label = f"{line}={choice}" if line else None
        drawn = plot.plot([x for x, _ in done], [y for _, y in done], "o-", label=label)
        rest = [(x, y) for x, y, t in own if t.state != TrialState.COMPLETE]
        colour = drawn[0].get_color()
        plot.plot([x for x, _ in rest], [y for _, y in rest], "o", color=colour, fillstyle="none")
    if getattr(space.searched[axis], "log", False):
        plot.set_xscale("log")
    plot.set(xlabel=axis, ylabel="best eval/loss (nats per token)")
    if line:
        plot.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True


def _cell(value: object, form: str) -> str:
    if value is None:
        return "-"
    return format(value, form) if isinstance(value, float) else str(value)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        tree = tree.setdefault(name, {})
    tree[last] = value
