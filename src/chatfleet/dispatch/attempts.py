"""What to do when a worker fails a request. Pure: no clock and no sockets, times are monotonic seconds that are given.

Three kinds of failure. A worker that could not be reached, or refused (429, 502, 503), has not begun: others are
asked until there is none, or the time is over. A worker that died, or fell silent, with the request in it may have died
of it: the request is replayed `max_replays` times. All else is the answer.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from chatfleet.core.errors import (
    EngineCrashed,
    EngineError,
    ServingError,
    TooManyRequests,
    WorkerBrokeOff,
    WorkerCrashed,
    WorkerFailed,
    WorkerRefused,
    WorkerUnreachable,
)
from chatfleet.dispatch.view import Worker

RETRY_SHARE: Final = 0.2
MIN_RETRYING: Final = 8
"""So many requests may be tried anew at a time whatever the share: a small fleet has few requests."""

QUARANTINE_S: Final = 600.0
MAX_QUARANTINED: Final = 10_000
MAX_DEATHS: Final = 8
"""Workers that may die with one request, though it went on each time: an answer in the middle resets the count of
replays, and this stops what kills them one token later each time."""

_RATE_S: Final = 30.0
"""Over how long the rate is counted at which requests end; it begins as one a second."""

_FIRST_DELAY_S: Final = 0.05
_MAX_DELAY_S: Final = 0.5


@dataclass(frozen=True)
class Patience:
    """How long a gateway waits for what, in seconds, and how often it sends a request again."""

    first_event_s: float
    stall_s: float
    total_s: float
    retry_s: float
    max_replays: int


class Attempts:
    """What one request has met so far. Made at its first failure."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._deaths = self._deaths_in_all = 0
        self._busy: ServingError | None = None
        self._delay_s = _FIRST_DELAY_S
        self._deadline: float | None = None
        """Of the search for a worker: known from when there was none left to ask."""
        self.failed_workers: tuple[Worker, ...] = ()
        """Not to be asked again while there are others."""
        self.error: ServingError | None = None
        self.is_poison = False
        """Whether it has cost workers their life, once too often."""

    def failed(
        self, error: ServingError, worker: Worker, now: float, *, has_begun: bool, went_on: bool
    ) -> ServingError | None:
        """What the client gets; None where the request may be tried again.

        `has_begun` says that events have reached the client, `went_on` that some have since the last failure.
        """
        if went_on:
            self._deaths = 0
            self._delay_s = _FIRST_DELAY_S
            self._deadline = None
            self.failed_workers = ()
            self._busy = None
        self.error = error
        self.failed_workers = (*self.failed_workers, worker)
        if isinstance(error, WorkerUnreachable):
            self._deadline = self._deadline or now + self._patience.retry_s
            return error if self._patience.retry_s and now >= self._deadline else None
        code = error.code if isinstance(error, WorkerRefused) and worker.info.kind == "chatfleet" else None
        is_death = isinstance(error, WorkerBrokeOff) or code == EngineCrashed.code
        if isinstance(error, WorkerRefused) and not is_death:
            if error.status == 429 and (self._busy is None or _retry_after(error) < _retry_after(self._busy)):
                self._busy = error
            if error.status in (429, 502, 503) or (has_begun and error.status < 500):  # of another version, maybe
                return None
        if not (is_death or isinstance(error, WorkerFailed) or code == EngineError.code):
            return error
        self._deaths += 1
        self._deaths_in_all += 1
        allowed = max(1, self._patience.max_replays) if has_begun else self._patience.max_replays
        if self._deaths <= allowed and self._deaths_in_all < MAX_DEATHS + self._patience.max_replays:
            self._deadline = None  # until now a worker had it
            return None
        if not is_death:
            return error
        self.is_poison = True
        return WorkerCrashed(
            f"The model's worker died or broke off {_times(self._deaths_in_all)} while answering this request, so it "
            "is not tried again. If it happens with this request only, change it; else see the workers' logs."
        )

    def candidates(self, workers: Sequence[Worker]) -> list[Worker]:
        """Those that have not failed it."""
        return [worker for worker in workers if worker not in self.failed_workers]

    def without_candidates(self, now: float, *, has_begun: bool, are_there: bool) -> ServingError | None:
        """What the client gets when there is nobody to ask; None where it may wait for somebody. `are_there` says that
        only the budget is in the way."""
        assert self.error is not None
        if are_there:
            return None
        if self._deadline is None:
            self._deadline = now + self._patience.retry_s
        if now >= self._deadline:
            return self.error
        if not has_begun and self._busy is not None:
            return self._busy
        is_refused = not has_begun and isinstance(self.error, WorkerRefused)
        if is_refused and self.failed_workers and not _is_ours(self.failed_workers):
            return self.error
        self.failed_workers = ()
        return None

    def wait_s(self) -> float:
        """How long to wait before looking again."""
        delay_s, self._delay_s = self._delay_s, min(self._delay_s * 1.6, _MAX_DELAY_S)
        return delay_s * random.uniform(0.5, 1.0)

    @classmethod
    def waiting(cls, error: ServingError, patience: Patience) -> "Attempts":
        """Of a request for which no worker is there."""
        attempts = cls(patience)
        attempts.error = error
        return attempts


class RetryBudget:
    """Bounds how many requests are tried anew at a time: the others wait, so that a fleet that is down to few workers
    is not run over.

    Source of the idea: Envoy, "Retry budgets".
    """

    def __init__(self) -> None:
        self._holders: set[object] = set()

    def take(self, request: object, active: int) -> bool:
        """Whether the request may be tried anew now, `active` being on their way. It counts until `give_back`."""
        if request not in self._holders:
            if len(self._holders) >= max(MIN_RETRYING, RETRY_SHARE * active):
                return False
            self._holders.add(request)
        return True

    def give_back(self, request: object) -> None:
        """Idempotent."""
        self._holders.discard(request)


class Crowd:
    """Requests at once, of which there may be `most`, and how fast they end."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._ended = 0.0  # since `_since`
        self._since = -math.inf
        self._promised = 0
        self.size = 0

    def enter(self, now: float) -> None:
        """Count one, until it has left. Raises TooManyRequests, which says when there is room: the k-th in a row that
        is turned away is promised the k-th place."""
        if self.size < self._most:
            self.size += 1
            return
        self._roll(now)
        self._promised += 1
        wait_s = self._promised * (now - self._since) / max(self._ended, 1.0)
        raise TooManyRequests(
            f"This gateway has {self.size} requests on their way and takes no more (--max-requests). Try again later.",
            retry_after_ms=round(1000 * min(max(wait_s, 0.1), 60.0)),
        )

    def leave(self, now: float) -> None:
        self.size -= 1
        self._ended += 1
        if self._promised:
            self._promised -= 1
        if now - self._since > _RATE_S:
            self._roll(now)

    def _roll(self, now: float) -> None:
        """Forget what is long ago."""
        elapsed_s = now - self._since
        if elapsed_s > 2 * _RATE_S:
            self._since, self._ended, self._promised = now - 1.0, 1.0, 0
        elif elapsed_s > _RATE_S:
            self._since, self._ended = now - elapsed_s / 2, self._ended / 2


class Quarantine:
    """Bodies of requests that workers died of, for QUARANTINE_S."""

    def __init__(self) -> None:
        self.until: dict[bytes, float] = {}
        """When each digest may go. While it is empty, nothing need be checked."""

    def add(self, path: str, body: bytes, now: float) -> None:
        self.until[_digest(path, body)] = now + QUARANTINE_S
        if len(self.until) > MAX_QUARANTINED:
            del self.until[next(iter(self.until))]

    def check(self, path: str, body: bytes, now: float) -> None:
        """Raises WorkerCrashed."""
        self.until = {digest: until for digest, until in self.until.items() if until > now}
        if _digest(path, body) in self.until:
            raise WorkerCrashed(
                "Workers of the model have died while answering this very request, so it is not tried again for "
                f"{QUARANTINE_S / 60:g} minutes. Change it, or see the workers' logs."
            )


def _digest(path: str, body: bytes) -> bytes:
    return blake2b(body, digest_size=16, key=path.encode()[:64]).digest()


def _retry_after(error: ServingError) -> float:
    value = error.headers.get("retry-after-ms", "")
    return float(value) if value.isdigit() else float("inf")


def _times(deaths: int) -> str:
    return "once" if deaths == 1 else f"{deaths} times"


def _is_ours(workers: Sequence[Worker]) -> bool:
    return any(worker.info.kind == "chatfleet" for worker in workers)
