"""Who may generate: a bounded number at once, a bounded queue by priority and arrival, nobody else."""

import asyncio
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count as counter
from types import TracebackType
from typing import Final

from chatfleet.core.errors import InvalidRequest, QueueFull
from chatfleet.worker.promises import Promises

_MAX_LEFT: Final = 64
"""Entries of those who have left that the queue may hold beyond as many as wait, before they are swept out."""


class Permit:
    """The right to generate one choice: `async with` waits for a slot and gives it back.

    Releasing is idempotent and also leaves the queue, so cancellation while waiting costs nothing.
    """

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> None:
        await self._granted

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def grant(self) -> None:
        if not self._granted.done():
            self._granted.set_result(None)

    def release(self) -> None:
        self._admission.release(self)


class Admission:
    """Slots and queue of one worker. Not thread-safe: the event loop's own. `now` gives monotonic seconds.

    Of those who wait, the lowest priority number comes first, as in vLLM, then who came first. What runs is not
    interrupted, and nothing keeps those of low priority from waiting for as long as others come.
    """

    def __init__(self, *, max_concurrency: int, max_queue: int, now: Callable[[], float] = time.monotonic) -> None:
        self._max_concurrency = max_concurrency
        self._max_queue = max_queue
        self._now = now
        self._promises = Promises(slots=max_concurrency, max_queue=max_queue, now=now())
        self._running: set[Permit] = set()
        self._waiting: set[Permit] = set()
        self._queue: list[tuple[int, int, Permit]] = []  # a heap, with some who have left
        self._arrivals = counter()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def reserve(self, count: int, *, priority: int = 0) -> list[Permit]:
        """Permits for `count` choices, all or none. Raises QueueFull, which says when to come again, or InvalidRequest
        for ever too many."""
        if count > self._max_concurrency + self._max_queue:
            raise InvalidRequest(
                f"{count} choices are more than this worker ever takes at once "
                f"({self._max_concurrency} running and {self._max_queue} waiting). Ask for fewer.",
                param="n",
            )
        free = self._max_concurrency - len(self._running)
        if len(self._waiting) + count - free > self._max_queue:
            retry_after_s = self._promises.retry_after_s(count, self._now())
            raise QueueFull(
                f"This worker is busy: {self.running} running and {self.waiting} waiting "
                f"(--max-queue {self._max_queue}). Try again in {retry_after_s:.1f} s.",
                retry_after_ms=round(1000 * retry_after_s),
            )
        permits = [Permit(self) for _ in range(count)]
        self._waiting.update(permits)
        for permit in permits:
            heappush(self._queue, (priority, next(self._arrivals), permit))
        self._fill()
        return permits

    def release(self, permit: Permit) -> None:
        if permit in self._running:
            self._running.discard(permit)
            self._promises.given_back(self._now())
            self._fill()
        elif permit in self._waiting:
            self._waiting.discard(permit)
            if len(self._queue) > 2 * len(self._waiting) + _MAX_LEFT:
                self._queue = [entry for entry in self._queue if entry[2] in self._waiting]
                heapify(self._queue)

    def _fill(self) -> None:
        while self._queue and len(self._running) < self._max_concurrency:
            *_, permit = heappop(self._queue)
            if permit in self._waiting:
                self._waiting.discard(permit)
                self._running.add(permit)
                self._promises.taken(self._now())
                permit.grant()
