"""Who may generate: a bounded number at once, a bounded queue in order of arrival, nobody else."""

import asyncio
from types import TracebackType

from chatfleet.core.errors import InvalidRequest, QueueFull


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
    """Slots and queue of one worker. Not thread-safe: the event loop's own."""

    def __init__(self, *, max_concurrency: int, max_queue: int) -> None:
        self._max_concurrency = max_concurrency
        self._max_queue = max_queue
        self._running: set[Permit] = set()
        self._waiting: dict[Permit, None] = {}  # in order of arrival

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def reserve(self, count: int) -> list[Permit]:
        """Permits for `count` choices, all or none. Raises QueueFull, or InvalidRequest for ever too many."""
        if count > self._max_concurrency + self._max_queue:
            raise InvalidRequest(
                f"{count} choices are more than this worker ever takes at once "
                f"({self._max_concurrency} running and {self._max_queue} waiting). Ask for fewer.",
                param="n",
            )
        free = self._max_concurrency - len(self._running)
        if len(self._waiting) + count - free > self._max_queue:
            raise QueueFull(
                f"This worker is busy: {self.running} running and {self.waiting} waiting "
                f"(--max-queue {self._max_queue}). Try again shortly."
            )
        permits = [Permit(self) for _ in range(count)]
        self._waiting.update(dict.fromkeys(permits))
        self._fill()
        return permits

    def release(self, permit: Permit) -> None:
        if permit in self._running:
            self._running.discard(permit)
            self._fill()
        else:
            self._waiting.pop(permit, None)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._max_concurrency:
            permit = next(iter(self._waiting))
            del self._waiting[permit]
            self._running.add(permit)
            permit.grant()
