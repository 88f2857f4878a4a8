"""One request at one worker."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from chatfleet.core.errors import WorkerFailed
from chatfleet.dispatch.events import KEEP_ALIVE, EventSplitter
from chatfleet.dispatch.refusals import refusal
from chatfleet.dispatch.upstream import Headers, Upstream, UpstreamResponse
from chatfleet.dispatch.view import Worker

logger = logging.getLogger(__name__)

_EVENT_STREAM: Final = "text/event-stream"


class Exchange:
    """Holds a slot of the worker, and from `send` on a connection to it, until closed.

    Iterating gives the whole server-sent events of the answer as they come, several at once where they came so, and a
    comment after every `keep_alive_s` seconds of silence. Raises WorkerFailed when the worker breaks off, and its
    refusal as a ServingError.
    """

    def __init__(self, upstream: Upstream, worker: Worker, *, keep_alive_s: float) -> None:
        self._upstream = upstream
        self._worker = worker
        self._keep_alive_s = keep_alive_s
        self._opening: asyncio.Task[UpstreamResponse] | None = None
        self._response: UpstreamResponse | None = None
        self._splitter = EventSplitter()
        self._ended = False
        self._lost = False
        self._held = ExitStack()
        self._held.enter_context(worker.slot(self._lose))

    def send(self, path: str, body: bytes, headers: Headers) -> None:
        """Begin. `answer` tells what comes of it."""
        self._opening = asyncio.create_task(self._open(path, body, headers))

    async def answer(self) -> UpstreamResponse:
        """The worker's answer once its head has come, if it is a 200. Raises ServingError. Cancelling it loses
        nothing."""
        assert self._opening is not None, "nothing was sent"
        try:
            return await asyncio.shield(self._opening)
        except asyncio.CancelledError:
            if self._lost and self._opening.cancelled():
                raise WorkerFailed("The model's worker is gone. Try again.") from None
            raise

    async def answer_in_time(self) -> UpstreamResponse | None:
        """The same, or None when nothing has come before a stream must be kept alive."""
        try:
            async with asyncio.timeout(self._keep_alive_s):
                return await self.answer()
        except TimeoutError:
            return None

    async def whole(self) -> bytes:
        """The whole body of the answer. Raises ServingError."""
        response = await self.answer()
        with self._noting_failure():
            return await response.read_all()

    async def _open(self, path: str, body: bytes, headers: Headers) -> UpstreamResponse:
        info = self._worker.info
        with self._noting_failure():
            response = await self._upstream.post(info.url + path, body, headers)
        self._response = response
        self._held.callback(response.close)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise WorkerFailed("The model's worker sent a compressed answer, which nobody asked for.")
        if response.status != 200:
            raise refusal(info, response.status, await response.read_all(), response.headers)
        return response

    def _lose(self) -> None:
        self._lost = True
        if self._opening is not None:
            self._opening.cancel()
        if self._response is not None:
            self._response.close()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            try:
                async with asyncio.timeout(self._keep_alive_s):
                    data = await self._read()
            except TimeoutError:
                return KEEP_ALIVE
            self._ended = not data
            if events := self._splitter.feed(data) if data else self._splitter.finish(is_framed=self._is_framed()):
                return events
        raise StopAsyncIteration

    def _is_framed(self) -> bool:
        assert self._response is not None
        return bool({"transfer-encoding", "content-length"} & {name.lower() for name in self._response.headers})

    async def _read(self) -> bytes:
        response = await self.answer()
        if not is_event_stream(response):
            raise WorkerFailed("The model's worker did not stream its answer.")
        with self._noting_failure():
            return await response.read_some()

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except WorkerFailed as exc:
            info = self._worker.info
            logger.warning("the worker %s at %s failed a request: %s", info.worker_id, info.url, exc.__cause__ or exc)
            self._worker.failed(time.monotonic())
            raise

    async def aclose(self) -> None:
        """Give back the slot and the connection. Idempotent; what was not read to its end is dropped, and the worker
        stops working on it."""
        try:
            if self._opening is not None:
                self._opening.cancel()
                await asyncio.wait({self._opening})
                if not self._opening.cancelled():
                    self._opening.exception()  # retrieved: whoever waited for it has it, or is gone
        finally:
            self._held.close()


def media_type(response: UpstreamResponse) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_event_stream(response: UpstreamResponse) -> bool:
    return media_type(response) == _EVENT_STREAM
