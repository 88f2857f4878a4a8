"""The way from an event loop to the database: one thread, which does one thing after the other."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from chatfleet.store.database import Database, Page, Wanted
from chatfleet.store.errors import NotWhole, StoreFailure, StoreUnavailable
from chatfleet.store.records import Exchanged, record_of
from chatfleet.store.shown import completion_json, completions_json, messages_json

T = TypeVar("T")

MAX_COMPLETION_BYTES: Final = 16 * 1024 * 1024
"""Of a request and its answer, together."""

MAX_HELD_BYTES: Final = 128 * 1024 * 1024
"""Of streams that are on their way, and of what waits to be written."""

_CLOSING_S: Final = 3.0

logger = logging.getLogger(__name__)


class Recording:
    """The answer to one request, as its client gets it: either `add` some times and `keep_stream`, or `keep_whole`. To
    be closed at any rate; what is not kept until then is thrown away."""

    __slots__ = ("_events", "_is_too_large", "_size", "_store")

    def __init__(self, store: "CompletionStore") -> None:
        self._store = store
        self._events: list[bytes] = []
        self._size = 0
        self._is_too_large = False

    def add(self, events: bytes) -> None:
        """Whole events of a stream."""
        if self._is_too_large:
            return
        if self._size + len(events) > MAX_COMPLETION_BYTES or not self._store.hold(len(events)):
            self._is_too_large = True
            self.close()
            return
        self._events.append(events)
        self._size += len(events)

    def keep_stream(self, owner: bytes, request_id: str, request: bytes, done: Callable[[bool], None]) -> None:
        """The stream has ended well. `done` is told, in a moment, whether it is kept."""
        if self._is_too_large:
            self._store.refuse(done)
            return
        self._store.keep(Exchanged(owner, request_id, request, b"".join(self._events), is_stream=True), done)

    def keep_whole(
        self, owner: bytes, request_id: str, request: bytes, body: bytes, done: Callable[[bool], None]
    ) -> None:
        self._store.keep(Exchanged(owner, request_id, request, body, is_stream=False), done)

    def close(self) -> None:
        """Idempotent."""
        self._store.release(self._size)
        self._events.clear()
        self._size = 0


class CompletionStore:
    """Stored completions, for one event loop. What is to be read is read after all that was to be written before."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread = ThreadPoolExecutor(1, "store")
        self._held = 0
        self._is_failing = False

    async def open(self) -> None:
        """Say in the log what is wrong with the file, if anything is, and let go of what is too old."""
        try:
            await self._run(self._database.check)
        except StoreFailure as exc:
            self._say(exc)
        else:
            await self.tidy()

    async def tidy(self) -> None:
        """Let go of what is too old."""
        try:
            await self._run(self._database.expire)
        except StoreFailure as exc:
            self._say(exc)

    async def aclose(self) -> None:
        """Write what waits, within a few seconds."""
        writing = asyncio.ensure_future(self._run(self._database.close))
        done, _ = await asyncio.wait({writing}, timeout=_CLOSING_S)
        if not done:
            logger.error("the gateway ends, and completions that were to be stored are lost: the database is too slow")
        self._thread.shutdown(wait=False, cancel_futures=True)

    # What the data plane does

    def recording(self) -> Recording:
        return Recording(self)

    def hold(self, size: int) -> bool:
        """Whether there is room for so many bytes more, which are `release`d then."""
        if self._held + size > MAX_HELD_BYTES:
            return False
        self._held += size
        return True

    def release(self, size: int) -> None:
        self._held -= size

    def keep(self, exchanged: Exchanged, done: Callable[[bool], None]) -> None:
        """Keep a completion, soon. `done` is told on the loop whether it is."""
        if exchanged.size > MAX_COMPLETION_BYTES or not self.hold(exchanged.size):
            self.refuse(done)
            return

        def told(writing: asyncio.Future[None]) -> None:
            self.release(exchanged.size)
            error = None if writing.cancelled() else writing.exception()
            if isinstance(error, StoreFailure):
                self._say(error)
            elif isinstance(error, NotWhole):
                logger.warning("an answer was to be stored, and cannot be: %s", error)
            elif error is not None:
                logger.error("unexpected error while an answer was to be stored", exc_info=error)
            is_kept = error is None and not writing.cancelled()
            self._is_failing = self._is_failing and not is_kept
            done(is_kept)

        self._run(lambda: self._database.put(record_of(exchanged))).add_done_callback(told)

    def refuse(self, done: Callable[[bool], None]) -> None:
        """Keep nothing of an answer, for its size."""
        logger.warning(
            "an answer was to be stored, and is not: it is larger than %d MB, or too much waits to be written",
            MAX_COMPLETION_BYTES // 2**20,
        )
        done(False)

    # What clients ask, and get as JSON. All raise StoreUnavailable, and CompletionNotFound as the database does.

    async def get(self, owner: bytes, completion_id: str) -> bytes:
        return await self._asked(lambda: completion_json(self._database.get(owner, completion_id)))

    async def messages(self, owner: bytes, completion_id: str, page: Page) -> bytes:
        return await self._asked(
            lambda: messages_json(completion_id, self._database.messages(owner, completion_id), page)
        )

    async def list(self, owner: bytes, wanted: Wanted, page: Page) -> bytes:
        return await self._asked(lambda: completions_json(*self._database.list(owner, wanted, page)))

    async def update(self, owner: bytes, completion_id: str, metadata: Mapping[str, str]) -> bytes:
        encoded = msgspec.json.encode(metadata)
        return await self._asked(lambda: completion_json(self._database.update(owner, completion_id, encoded)))

    async def delete(self, owner: bytes, completion_id: str) -> None:
        await self._asked(lambda: self._database.delete(owner, completion_id))

    async def _asked(self, ask: Callable[[], T]) -> T:
        try:
            return await self._run(ask)
        except StoreFailure as exc:
            self._say(exc)
            raise StoreUnavailable from exc

    def _run(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        return asyncio.wrap_future(self._thread.submit(work))

    def _say(self, failure: StoreFailure) -> None:
        """Once, until something could be kept again."""
        if not self._is_failing:
            logger.error("completions cannot be stored (answers go out all the same): %s.", failure)
        self._is_failing = True


def default_store_path(port: int) -> Path | None:
    """`$XDG_STATE_HOME/chatfleet/gateway-<port>.db`, by default in ~/.local/state; None without a home."""
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    except RuntimeError:
        return None
    return folder / "chatfleet" / f"gateway-{port}.db"
