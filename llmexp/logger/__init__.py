"""Where a run's numbers go besides its own files; a logger is one class and one YAML.

The files of the run folder are the truth and a logger is a view of them: once it is made, it never
raises into training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmexp.errors import RequestError

Histogram = tuple[list[int], list[float]]  # N counts, N + 1 edges


@dataclass(frozen=True)
class RunInfo:
    """What a logger is told about the run it shows."""

    id: str
    name: str
    dir: Path
    metrics_file: Path
    group: str | None = None
    job_type: str = "train"
    tags: tuple[str, ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    resumed_from_step: int | None = None


class Logger:
    """The silent logger, and what every logger can do.

    All loggers take the same arguments: `logger=none` beside `logger.project=x` is no mistake.
    `mode` is online, offline or disabled; `group` and `tags` add to what the run says of itself;
    `gradients` are shown at each so many optimizer steps, 0: never; `artifacts`: the best model is
    uploaded at the end.
    Raises RequestError for what cannot be, as soon as it is made.
    """

    def __init__(
        self,
        *,
        project: str = "llmexp",
        entity: str | None = None,
        mode: str = "online",
        group: str | None = None,
        tags: Sequence[str] = (),
        gradients: int = 0,
        artifacts: bool = False,
    ) -> None:
        if gradients < 0:
            raise RequestError(
                f"logger.gradients={gradients} cannot be: use the optimizer steps between two "
                "histograms, or 0 for none"
            )
        self.project, self.entity, self.mode, self.group = project, entity, mode, group
        self.tags, self.gradients, self.artifacts = tuple(tags), gradients, artifacts
        self.check()

    def check(self) -> None:
        """Refuse arguments, or a machine, with which this logger cannot work: RequestError."""

    def start(self, info: RunInfo) -> None:
        """Open the run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the numbers of one step; several calls for one step are one row."""

    def histograms(self, step: int, found: Mapping[str, Histogram]) -> None:
        """Show how the values of some tensors are spread."""

    def samples(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Show generated texts: one mapping per text, with the same keys in each."""

    def media(self, name: str, path: Path) -> None:
        """Show a picture (.png) or a text (.md)."""

    def finish(self, state: str, summary: Mapping[str, object]) -> None:
        """Close the run as finished, pruned, stopped, failed or crashed."""
