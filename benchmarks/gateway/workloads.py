"""What each row of the comparison asks of the gateways."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

KEY: Final = "sk-benchmark-key-of-the-gateway-comparison"

MARK: Final = "#" * 16
"""What the load generator replaces by a number of its own for each request."""

_WHOLE_WORDS = "Write a short story about a robot that learns to paint, in about two hundred words."


@dataclass(frozen=True)
class Workload:
    """`connections` have one request after another for `seconds`, or `streams` in all where that is given.

    A stream has `chunks` chunks: as fast as they go, or one every `pace_us`, stamped with the time where `stamped`.
    `varied` requests have heads and bodies of which no two are alike. `cost_of` is the count of a result by which CPU
    seconds are divided: requests or events.
    """

    name: str
    about: str
    connections: int
    stream: bool = False
    varied: bool = False
    streams: int | None = None
    chunks: int = 200
    pace_us: int = 0
    stamped: bool = False
    cost_of: Literal["requests", "events"] = "requests"
    max_repetitions: int | None = None

    def control(self) -> str:
        """What to ask the mock backend for."""
        return f"/control?chunks={self.chunks}&pace_us={self.pace_us}&stamp={int(self.stamped)}"

    def load_arguments(self, seconds: float, bodies: Path) -> list[str]:
        arguments = ["-c", str(self.connections), "-b", str(bodies)]
        if self.varied:
            arguments += ["-H", f"idempotency-key: {MARK}{MARK}"]
        if self.streams is None:
            return [*arguments, "-d", f"{seconds:g}", "-t", "15"]
        # They begin over one second, so that not all are due at the same moment.
        length_s = self.chunks * self.pace_us // 1_000_000
        return [*arguments, "-n", str(self.streams), "-r", "1000", "-t", str(3 * length_s + 10)]

    def expected_s(self, seconds: float) -> float:
        """About how long it takes."""
        return seconds if self.streams is None else 1 + self.chunks * self.pace_us / 1e6

    def bodies(self) -> str:
        """Request bodies for the load generator, one a line."""
        if not self.varied:
            return json.dumps(_body(_WHOLE_WORDS, self.stream))
        return "\n".join(json.dumps(_body(f"{MARK} {'word ' * extra}{MARK}", self.stream)) for extra in range(64))

    def warm_up(self) -> "Workload":
        return replace(self, connections=min(self.connections, 8), streams=None, pace_us=0)


def _body(content: str, stream: bool) -> dict[str, Any]:
    body = {
        "model": "mock",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": content},
        ],
        "max_tokens": 200,
        "temperature": 0.7,
    }
    return {**body, "stream": True} if stream else body


WORKLOADS: Final = (
    Workload("ns1", "whole answers, 1 connection", 1),
    Workload("ns32", "whole answers, 32 connections", 32),
    Workload("ns128", "whole answers, 128 connections", 128),
    Workload("varied32", "the same with 32, no two heads or bodies alike", 32, varied=True),
    Workload("burst32", "streams of 200 chunks as fast as they go, 32 connections", 32, stream=True, cost_of="events"),
    Workload("ttft1", "streams of 10 chunks, one a millisecond, 1 connection", 1, stream=True, chunks=10, pace_us=1000),
    Workload(
        "paced",
        "1000 streams at once of 100 chunks, 10 a second each",
        1000,
        stream=True,
        streams=1000,
        chunks=100,
        pace_us=100_000,
        stamped=True,
        cost_of="events",
        max_repetitions=3,
    ),
)


def quick(workload: Workload) -> Workload:
    """The same with a few short streams in place of a thousand."""
    if workload.streams is None:
        return workload
    return replace(workload, connections=20, streams=20, chunks=10, pace_us=20_000, max_repetitions=1)
