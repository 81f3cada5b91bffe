"""The tables of benchmarks/peers.py: ratios of one round, their medians, and the goals."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median

from peer_contest import Result
from peer_work import Work

TITLES = {
    "llmexp": "llmexp",
    "tutorial": "tutorial loop",
    "trainer": "Hugging Face Trainer",
    "trl": "TRL SFTTrainer",
    "lightning": "Lightning",
    "litgpt": "LitGPT",
    "nanogpt": "nanoGPT, written out",
}
# nats per token that rounding may move a loss by: beyond it something else was learned
TOLERANCE = {"fp32": 2e-3, "bf16": 1e-2}
BAND = 0.3  # and what other dropout may
HEADINGS = (
    "contestant",
    "real tokens/s",
    "against the tutorial loop",
    "share of the limit",
    "peak memory, GiB",
    "against Trainer",
    "first step, s",
    "against Trainer",
    "end, s",
    "loss",
    "apart",
)


@dataclass(frozen=True)
class Contest:
    """One work in one number format at one dropout, and how all of it went."""

    work: Work
    precision: str
    dropout: float
    peers: list[str]
    results: list[Result]
    limits: list[float]  # tokens per second of the matrix products alone, one of each round
    missing: dict[str, str]
    is_gpu: bool = False
    model: str = "gpt2"

    def of(self, peer: str) -> list[Result]:
        """Return the runs of a contestant that ended well."""
        return [result for result in self.results if result.peer == peer and not result.failure]

    def ratio(self, name: str, peer: str, other: str) -> float | None:
        """Return the median over the rounds of one contestant's value over another's."""
        ours = {result.round: getattr(result, name) for result in self.of(peer)}
        theirs = {result.round: getattr(result, name) for result in self.of(other)}
        ratios = [ours[round] / theirs[round] for round in ours if theirs.get(round)]
        return median(ratios) if ratios else None

    def share(self, peer: str) -> float | None:
        """Return the share of the machine's limit, its fastest round, that a contestant reaches."""
        found = self.of(peer)
        if not found or not self.limits:
            return None
        return median(result.tokens_per_second for result in found) / max(self.limits)

    def apart(self, peer: str) -> float | None:
        """Return how far a contestant's losses are from those of the tutorial loop, at most.

        On full rows at every step that both told, else where the runs ended.
        """
        reference, found = self.of(self.reference), self.of(peer)
        if not reference or not found:
            return None
        one, other = reference[0], found[0]
        if not self.work.is_full:
            return abs(one.last - other.last)
        common = one.losses.keys() & other.losses.keys()
        return max(abs(one.losses[step] - other.losses[step]) for step in common)

    @property
    def reference(self) -> str:
        """The contestant whose losses the others are held against."""
        return "tutorial" if self.of("tutorial") else self.peers[0]

    @property
    def tolerance(self) -> float:
        """The nats per token that two contestants may be apart."""
        return TOLERANCE[self.precision] if self.dropout == 0 else BAND

    def strangers(self) -> list[str]:
        """Return who learned something else: full rows only, elsewhere the batches differ."""
        if not self.work.is_full:
            return []
        return [peer for peer in self.peers if (self.apart(peer) or 0.0) > self.tolerance]

    def fastest(self) -> str | None:
        """Return the fastest of the peers that train with this dropout."""
        rivals = {
            peer: median(result.tokens_per_second for result in found)
            for peer in self.peers
            if peer != "llmexp" and (found := self.of(peer))
        }
        return max(rivals, key=lambda peer: rivals[peer]) if rivals else None


def page(contest: Contest) -> Iterator[str]:
    """Yield the lines of a contest's table and its goals."""
    work = contest.work
    yield f"\n## ({work.key}) {work.title}: {contest.precision}, dropout {contest.dropout:g}\n"
    yield f"{work.steps} steps of {work.batch} examples of at most {work.length} tokens.\n"
    yield row(HEADINGS)
    yield row("---" for _ in HEADINGS)
    if contest.limits:
        name = "matrix products alone: the limit"
        yield row([name, f"{max(contest.limits):,.0f}", "", "100 %", *[""] * 7])
    for peer in contest.peers:
        yield from rows_of(contest, peer)
    for peer, reason in contest.missing.items():
        yield row([TITLES[peer], reason, *[""] * 9])
    yield ""
    if strangers := contest.strangers():
        named = ", ".join(TITLES[peer] for peer in strangers)
        yield f"**Not the same learning** (tolerance {contest.tolerance:g} nats): {named}.\n"
    yield from goals(contest)


def row(cells: Iterable[str]) -> str:
    """Return a line of a table of Markdown."""
    return "| " + " | ".join(cells) + " |"


def rows_of(contest: Contest, peer: str) -> Iterator[str]:
    """Yield a contestant's line, and a line for a run of it that failed."""
    found = contest.of(peer)
    if found:
        middle = {
            name: median(getattr(result, name) for result in found)
            for name in ("tokens_per_second", "memory", "first_step", "end", "last")
        }
        yield row(
            [
                TITLES[peer],
                f"{middle['tokens_per_second']:,.0f}",
                times(contest.ratio("tokens_per_second", peer, "tutorial")),
                percent(contest.share(peer)),
                f"{middle['memory']:.2f}",
                times(contest.ratio("memory", peer, "trainer")),
                f"{middle['first_step']:.1f}",
                times(contest.ratio("first_step", peer, "trainer")),
                f"{middle['end']:.1f}",
                f"{middle['last']:.4f}",
                number(contest.apart(peer)),
            ]
        )
    for failed in (result for result in contest.results if result.failure):
        if failed.peer == peer:
            yield row([TITLES[peer], f"failed: {failed.failure[:120]}", *[""] * 9])


def times(ratio: float | None) -> str:
    """Return a ratio as text."""
    return "" if ratio is None else f"{ratio:.2f}x"


def percent(share: float | None) -> str:
    """Return a share as text."""
    return "" if share is None else f"{share:.0%}"


def number(value: float | None) -> str:
    """Return a small number as text."""
    return "" if value is None else f"{value:.1e}"


# -- the goals ------------------------------------------------------------------------------------


def goals(contest: Contest) -> Iterator[str]:
    """Yield each goal that stands for this contest, met or missed."""
    for name, value, wanted, is_least in measured_goals(contest):
        if value is None:
            verdict = "not measured"
        else:
            is_met = value >= wanted if is_least else value <= wanted
            verdict = f"{value:.2f}, {'met' if is_met else '**missed**'}"
        yield f"- goal: {name} {'at least' if is_least else 'at most'} {wanted:g}: {verdict}"


def measured_goals(contest: Contest) -> Iterator[tuple[str, float | None, float, bool]]:
    """Yield (what, its value, the goal, whether that is the least or the most)."""
    key, bf16 = contest.work.key, contest.precision == "bf16"
    fastest = contest.fastest()
    rival = f"the fastest peer ({TITLES[fastest]})" if fastest else "the fastest peer"

    def speed(other: str | None) -> float | None:
        return contest.ratio("tokens_per_second", "llmexp", other) if other else None

    if key == "a" and contest.dropout > 0:
        if contest.is_gpu and bf16:
            yield "tokens/s against Trainer", speed("trainer"), 1.5, True
        least = (1.1 if bf16 else 1.2) if contest.is_gpu else (1.5 if bf16 else 1.25)
        yield f"tokens/s against {rival}", speed(fastest), least, True
    if key == "a" and contest.dropout == 0:
        if not contest.is_gpu:
            least = 0.85 if bf16 else 0.95
            yield "share of the limit", contest.share("llmexp"), least, True
        elif bf16 and contest.model == "gpt2-medium":
            yield "share of the limit", contest.share("llmexp"), 0.5, True
    if key in ("c", "d"):
        yield "tokens/s against the tutorial loop", speed("tutorial"), 8.0, True
        yield f"tokens/s against {rival}", speed(fastest), 1.5, True
    if key == "a":
        most = 0.5 if contest.is_gpu else 0.6
        yield "memory against Trainer", contest.ratio("memory", "llmexp", "trainer"), most, False
    first = contest.ratio("first_step", "llmexp", "trainer")
    yield "command to first step against Trainer", first, 0.7, False
