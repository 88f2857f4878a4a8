"""The comparison as tables, in markdown and for a terminal, as JSON, and as a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from figures import Round, Workload, summaries
from plot import line_plot
from rich.table import Table

OURS: Final = "chatfleet"


@dataclass(frozen=True)
class Started:
    """What a target is and what it took, whatever it was asked: `rss_mb` is the most that its processes held."""

    version: str
    start_s: float
    rss_mb: float


@dataclass(frozen=True)
class Grid:
    """A table: a head and rows of cells; the first `names` columns are words, the others numbers."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    names: int

    def markdown(self) -> str:
        rule = ["---"] * self.names + ["---:"] * (len(self.head) - self.names)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.head, rule, *self.rows))

    def table(self) -> Table:
        table = Table()
        for index, head in enumerate(self.head):
            table.add_column(head, justify="left" if index < self.names else "right")
        for row in self.rows:
            table.add_row(*row)
        return table


class Comparison:
    """All rounds of all targets. `left_out` has the targets that did not start, each with why."""

    def __init__(
        self,
        workloads: Sequence[Workload],
        rounds: Sequence[Round],
        started: Mapping[str, Started],
        left_out: Mapping[str, str],
    ) -> None:
        self._workloads = workloads
        self._rounds = rounds
        self._started = started
        self._left_out = left_out
        self._summaries = summaries(rounds)

    def grids(self) -> list[Grid]:
        return [self._streams(), self._servers(), *([self._ratios()] if self._can_be_compared() else [])]

    def markdown(self) -> str:
        return "\n\n".join(grid.markdown() for grid in self.grids())

    def to_json(self, about: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "about": about,
            "targets": {name: asdict(one) for name, one in self._started.items()},
            "left_out": dict(self._left_out),
            "summaries": [asdict(one) for one in self._summaries.values()],
            "rounds": [asdict(one) for one in self._rounds],
        }

    def plot(self) -> str:
        """Tokens per second over streams, a line for each target, as SVG."""
        lines = {
            target: [(one.streams, self._summaries[one.name, target].tokens_per_s) for one in self._batches()]
            for target in self._started
        }
        return line_plot(lines, "streams", "tokens/s, all streams together")

    def _batches(self) -> list[Workload]:
        return [workload for workload in self._workloads if not workload.prefill]

    def _streams(self) -> Grid:
        head = (
            "streams",
            "server",
            "tokens/s",
            "decode tokens/s",
            "first token p50 ms",
            "inter-token p50 ms",
            "p99 ms",
        )
        rows = []
        for workload in self._batches():
            for target in self._started:
                one = self._summaries[workload.name, target]
                numbers = one.tokens_per_s, one.decode_tokens_per_s, one.first_token_ms
                gaps = one.inter_token_p50_ms, one.inter_token_p99_ms
                rows.append((str(workload.streams), target, *map(_whole, numbers), *map(_tenths, gaps)))
        return Grid(head, rows, names=2)

    def _servers(self) -> Grid:
        prefills = [workload for workload in self._workloads if workload.prefill]
        head = ("server", "version", *(f"prefill of {one.prompt_tokens}, tokens/s" for one in prefills))
        rows = []
        for target, started in self._started.items():
            rates = [_whole(self._summaries[one.name, target].prefill_tokens_per_s) for one in prefills]
            rows.append((target, started.version, *rates, _tenths(started.start_s), _whole(started.rss_mb)))
        return Grid((*head, "start s", "memory MB"), rows, names=2)

    def _can_be_compared(self) -> bool:
        return len({target.startswith(OURS) for target in self._started}) == 2

    def _ratios(self) -> Grid:
        """Ours to each peer, of all tokens per second and of decode."""
        batches = self._batches()
        head = ["ours", "to"]
        head += [f"{what}, {streams_in_words(one.streams)}" for what in ("tokens/s", "decode") for one in batches]
        rows = []
        for ours in (name for name in self._started if name.startswith(OURS)):
            for peer in (name for name in self._started if not name.startswith(OURS)):
                pairs = [(self._summaries[one.name, ours], self._summaries[one.name, peer]) for one in batches]
                whole = [_ratio(a.tokens_per_s, b.tokens_per_s) for a, b in pairs]
                decode = [_ratio(a.decode_tokens_per_s, b.decode_tokens_per_s) for a, b in pairs]
                rows.append((ours, peer, *whole, *decode))
        return Grid(tuple(head), rows, names=2)


def streams_in_words(streams: int) -> str:
    return f"{streams} stream{'s' * (streams > 1)}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _tenths(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _ratio(ours: float | None, peer: float | None) -> str:
    return "-" if ours is None or not peer else f"{ours / peer:.2f}"
