"""What a diagnosis is made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """Why it may be so, and what to type to find out."""

    why: str
    override: str  # as on the command line


@dataclass(frozen=True)
class Finding:
    """One thing that is not well with a run."""

    name: str
    says: str  # what was seen, with the numbers
    causes: tuple[Cause, ...]  # the likeliest first

    def text(self) -> str:
        """Return the finding for a terminal, a line per cause."""
        return "\n".join([f"{self.name}: {self.says}", *(f"  {line}" for line in self.lines())])

    def lines(self) -> list[str]:
        """Return a line per cause: why, and the override to try."""
        width = max((len(cause.override) for cause in self.causes), default=0)
        return [f"try {cause.override:<{width}}  {cause.why}" for cause in self.causes]


def finding(name: str, says: str, *causes: tuple[str, str]) -> Finding:
    """Return a finding; `causes` are pairs of override and reason."""
    return Finding(name, says, tuple(Cause(why, override) for override, why in causes))
