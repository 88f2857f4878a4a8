"""The comparison as a markdown table, and as JSON."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from workloads import Workload

BASELINE: Final = "nginx"

_HEADS: Final = (
    "test",
    "gateway",
    "requests/s",
    "CPU s",
    "to nginx",
    "latency p50 ms",
    "to nginx",
    "p99 ms",
    "first chunk p50 ms",
    "gap p99 ms",
    "memory MB",
    "errors",
)


@dataclass(frozen=True)
class Round:
    """One measurement: what the load generator saw, and what the target took for it."""

    workload: str
    target: str
    cpu_s: float
    rss_mb: float
    load: Mapping[str, Any]

    @property
    def errors(self) -> int:
        return int(self.load["errors"]) + int(self.load["unfinished"])

    def summary(self) -> str:
        chunks = f", {self.load['events']} chunks" if self.load["events"] else ""
        unfinished = f", {self.load['unfinished']} UNFINISHED" if self.load["unfinished"] else ""
        failed = f", {self.load['errors']} FAILED ({self.load['error_sample']})" if self.load["errors"] else ""
        return f"{self.load['requests']} requests{chunks} in {self.load['seconds']:.1f} s{unfinished}{failed}"


class Comparison:
    """All rounds of all workloads."""

    def __init__(self, workloads: Sequence[Workload], rounds: Sequence[Round]) -> None:
        self._workloads = workloads
        self._rounds = rounds

    def to_json(self, about: Mapping[str, Any]) -> dict[str, Any]:
        rows = [self._row(workload, target) for workload in self._workloads for target in self._targets(workload)]
        return {"about": dict(about), "rows": rows, "rounds": [asdict(one) for one in self._rounds]}

    def markdown(self) -> str:
        """The table, then what it means, then a sample of each target's errors."""
        lines = [_line(_HEADS), _line(["---", "---", *["---:"] * (len(_HEADS) - 2)])]
        for workload in self._workloads:
            rows = {target: self._row(workload, target) for target in self._targets(workload)}
            lines += [_line(_cells(row, rows.get(BASELINE))) for row in rows.values()]
        lines += ["", *(f"- {workload.name}: {workload.about}" for workload in self._workloads)]
        lines.append("- CPU s: of all processes of the gateway, per 1000 requests, or per 1M chunks (burst32, paced)")
        samples = {
            (one.workload, one.target): one.load["error_sample"] for one in self._rounds if one.load["error_sample"]
        }
        lines += [f"- {test}, {target} failed: {sample}" for (test, target), sample in samples.items()]
        return "\n".join(lines)

    def _targets(self, workload: Workload) -> list[str]:
        return list(dict.fromkeys(one.target for one in self._rounds if one.workload == workload.name))

    def _row(self, workload: Workload, target: str) -> dict[str, Any]:
        """Medians over the repetitions; the most memory, the sum of errors. Times in milliseconds."""
        rounds = [one for one in self._rounds if (one.workload, one.target) == (workload.name, target)]
        per = 1e6 if workload.cost_of == "events" else 1e3

        def median(value: Callable[[Round], float]) -> float:
            return statistics.median(map(value, rounds))

        def median_ms(times: str, quantile: str) -> float | None:
            counted = all(one.load[times]["count"] for one in rounds)
            return median(lambda one: one.load[times][quantile]) / 1e3 if counted else None

        return {
            "workload": workload.name,
            "target": target,
            "requests_per_s": median(lambda one: one.load["requests"] / one.load["seconds"]),
            "chunks_per_s": median(lambda one: one.load["events"] / one.load["seconds"]),
            "cost_of": workload.cost_of,
            "cpu_s": median(lambda one: per * one.cpu_s / max(1, one.load[workload.cost_of])),
            "latency_p50_ms": median_ms("latency_us", "p50"),
            "latency_p99_ms": median_ms("latency_us", "p99"),
            "first_p50_ms": median_ms("first_us", "p50") if workload.stream else None,
            "gap_p99_ms": median_ms("gap_us", "p99"),
            "delay_p50_ms": median_ms("delay_us", "p50"),
            "delay_p99_ms": median_ms("delay_us", "p99"),
            "rss_mb": max(one.rss_mb for one in rounds),
            "errors": sum(one.errors for one in rounds),
        }


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[str]:
    return [
        row["workload"],
        row["target"],
        f"{row['requests_per_s']:.0f}",
        f"{row['cpu_s']:.4f}" if row["cost_of"] == "requests" else f"{row['cpu_s']:.1f}",
        _ratio(row, baseline, "cpu_s"),
        _ms(row["latency_p50_ms"]),
        _ratio(row, baseline, "latency_p50_ms"),
        _ms(row["latency_p99_ms"]),
        _ms(row["first_p50_ms"]),
        _ms(row["gap_p99_ms"]),
        f"{row['rss_mb']:.0f}",
        str(row["errors"]),
    ]


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 10 else f"{value:.0f}"


def _ratio(row: Mapping[str, Any], baseline: Mapping[str, Any] | None, name: str) -> str:
    if baseline is None or row is baseline or row[name] is None or not baseline[name]:
        return ""
    return f"{row[name] / baseline[name]:.2f}"
