"""Requests by model and endpoint, counted at a cost that a hot path can bear."""

from collections.abc import Iterable
from typing import Final, Self

import msgspec

from chatfleet.observability.histogram import DURATION_EDGES, FIRST_TOKEN_EDGES, GAP_EDGES, Histogram

MAX_MODELS: Final = 1024
"""Names that are told apart; those of all further models are counted as ""."""

CLIENT_GONE: Final = 499
"""nginx's status for a client that left; here also where its answer had begun, but not ended."""


class EndpointNumbers(msgspec.Struct):
    """The requests for one model at one endpoint. Plain numbers, to be added to where things happen.

    `in_flight` is of this moment, all else only grows. A whole request costs 0.5 us (`in_flight` twice,
    `first_token.observe`, `ended`), a chunk 0.13 us (`gap.observe`). Times are in seconds.
    """

    model_name: str
    endpoint: str
    first_token: Histogram
    """From a request's arrival to its first token."""
    gap: Histogram
    """Between one piece of an answer and the next."""
    duration: Histogram
    """Of the requests that were answered (2xx), to the end of the answer."""
    by_status: dict[int, int] = {}
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    """Requests sent again, because a worker failed or refused them."""
    resumed: int = 0
    """Those among them whose stream went on in its middle."""
    streams_broken: int = 0
    """Streams that began (200) and then ended with an error, which was not the client's leaving."""
    idempotent_replays: int = 0
    """Requests that got the answer to an earlier one with their Idempotency-Key; they are not counted otherwise."""
    stored: int = 0
    """Answers that are kept, as their requests wanted."""
    not_stored: int = 0
    """Those that are not, although their requests wanted it."""
    in_flight: int = 0

    @classmethod
    def of(cls, model_name: str, endpoint: str) -> Self:
        return cls(
            model_name,
            endpoint,
            Histogram.over(FIRST_TOKEN_EDGES),
            Histogram.over(GAP_EDGES),
            Histogram.over(DURATION_EDGES),
        )

    def ended(
        self, status: int, duration_s: float, prompt_tokens: int | None = None, completion_tokens: int | None = None
    ) -> None:
        """A request is over: the status that its client got or was due, and the tokens where they are known."""
        by_status = self.by_status
        by_status[status] = by_status.get(status, 0) + 1
        if 200 <= status < 300:
            self.duration.observe(duration_s)
        if prompt_tokens is not None:
            self.prompt_tokens += prompt_tokens
        if completion_tokens is not None:
            self.completion_tokens += completion_tokens

    def count_stored(self, is_stored: bool) -> None:
        """An answer was to be kept."""
        self.stored += is_stored
        self.not_stored += not is_stored

    def add(self, other: "EndpointNumbers", *, alive: bool = True) -> None:
        """Count what another has counted too; of a process that is not alive, only what grows. Raises ValueError as
        `check_like` does, and then nothing has changed."""
        self.check_like(other)
        self.first_token.add(other.first_token)
        self.gap.add(other.gap)
        self.duration.add(other.duration)
        for status, count in other.by_status.items():
            self.by_status[status] = self.by_status.get(status, 0) + count
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.retries += other.retries
        self.resumed += other.resumed
        self.streams_broken += other.streams_broken
        self.idempotent_replays += other.idempotent_replays
        self.stored += other.stored
        self.not_stored += other.not_stored
        if alive:
            self.in_flight += other.in_flight

    def check_like(self, other: "EndpointNumbers") -> None:
        """Raises ValueError when the buckets of the other's histograms are not these."""
        self.first_token.check_like(other.first_token)
        self.gap.check_like(other.gap)
        self.duration.check_like(other.duration)


class RequestMetrics:
    """All requests of a process. The names that it tells apart are bounded: `endpoints` are those that exist."""

    def __init__(self, endpoints: Iterable[str]) -> None:
        self._endpoints = frozenset(endpoints)
        self._numbers: dict[tuple[str, str], EndpointNumbers] = {}
        self._models: set[str] = set()

    def of(self, model_name: str, endpoint: str) -> EndpointNumbers:
        """The numbers of a model that is served ("" for none of these) at an endpoint. The same object every time, so
        it may be kept."""
        if (found := self._numbers.get((model_name, endpoint))) is not None:
            return found
        if model_name not in self._models and len(self._models) >= MAX_MODELS:
            model_name = ""
        if endpoint not in self._endpoints:
            endpoint = ""
        self._models.add(model_name)
        key = (model_name, endpoint)
        return self._numbers.setdefault(key, EndpointNumbers.of(*key))

    def all(self) -> list[EndpointNumbers]:
        return list(self._numbers.values())


def summed(processes: Iterable[tuple[Iterable[EndpointNumbers], bool]]) -> list[EndpointNumbers]:
    """The numbers of several processes, each given with whether it is alive, as those of one."""
    sums: dict[tuple[str, str], EndpointNumbers] = {}
    for numbers, alive in processes:
        for one in numbers:
            key = (one.model_name, one.endpoint)
            sums.setdefault(key, EndpointNumbers.of(*key)).add(one, alive=alive)
    return list(sums.values())
