"""Those who watch the fleet: each is told of every change at once, and none can hold up the others."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Final

from chatfleet.controller.errors import FleetFull
from chatfleet.core.errors import ShuttingDown
from chatfleet.core.fleet import ALIVE_INTERVAL_S, ControllerAlive, FleetChange, FleetSnapshot
from chatfleet.http.streaming import sse

logger = logging.getLogger(__name__)

MAX_WATCHERS: Final = 256
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024
"""Of the events that one watcher has not taken; a single event is never too large."""


class _Watcher:
    """Events that one watcher has not taken yet."""

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self._ended = False

    def push(self, event: bytes) -> None:
        if self._ended:
            return
        if self._events and self._waiting_bytes + len(event) > MAX_WAITING_BYTES:
            logger.warning("a watcher of the fleet does not read, and is dropped; it may come back")
            self.end()
            return
        self._events.append(event)
        self._waiting_bytes += len(event)
        self._news.set()

    def end(self) -> None:
        """Let it take nothing more."""
        self._events.clear()
        self._ended = True
        self._news.set()

    async def take(self, until_s: float) -> bytes | None:
        """All that waits, as soon as something does; nothing at `until_s` of the loop's time, None at the end."""
        try:
            async with asyncio.timeout_at(until_s):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()
        events, self._events, self._waiting_bytes = self._events, [], 0
        return None if self._ended else b"".join(events)


class Watchers:
    """All watchers of one controller. `snapshot` and `alive` give the fleet as it is now."""

    def __init__(self, snapshot: Callable[[], FleetSnapshot], alive: Callable[[], ControllerAlive]) -> None:
        self._snapshot = snapshot
        self._alive = alive
        self._watchers: set[_Watcher] = set()
        self._sign_of_life: tuple[float, bytes] | None = None  # when it was made, and the event
        self._closed = False

    def __len__(self) -> int:
        return len(self._watchers)

    def publish(self, changes: Iterable[FleetChange]) -> None:
        """Push the changes to all. Returns at once, whoever reads."""
        for change in changes:
            self._sign_of_life = None
            event = sse(change.to_json())
            for watcher in self._watchers:
                watcher.push(event)

    def close(self) -> None:
        """End every watch now, and take no new ones."""
        self._closed = True
        for watcher in self._watchers:
            watcher.end()

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events: a snapshot, then every change after it, and a sign of life every ALIVE_INTERVAL_S.

        Ends when the watcher is too slow, and when the controller stops. Raises FleetFull, ShuttingDown before the
        first event.
        """
        if self._closed:
            raise ShuttingDown
        if len(self._watchers) >= MAX_WATCHERS:
            raise FleetFull(f"{MAX_WATCHERS} watch this controller already. Let some leave, or run another controller.")
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            now = asyncio.get_running_loop().time
            yield sse(self._snapshot().to_json())
            due_s = now() + ALIVE_INTERVAL_S
            while (events := await watcher.take(due_s)) is not None:
                if now() >= due_s:
                    events += self._alive_event(now())
                    due_s = now() + ALIVE_INTERVAL_S
                if events:
                    yield events
        finally:
            self._watchers.discard(watcher)

    def _alive_event(self, now: float) -> bytes:
        """One event for all watchers that want it at about the same time: it may tell of many workers."""
        if self._sign_of_life is None or now - self._sign_of_life[0] > ALIVE_INTERVAL_S / 4:
            self._sign_of_life = now, sse(self._alive().to_json())
        return self._sign_of_life[1]
