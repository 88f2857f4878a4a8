"""One request at one worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Final

from chatfleet.core.errors import WorkerFailed
from chatfleet.dispatch.events import KEEP_ALIVE, EventSplitter
from chatfleet.dispatch.refusals import refusal
from chatfleet.dispatch.upstream import Headers, Upstream, UpstreamResponse
from chatfleet.dispatch.view import Worker

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
        self._splitter = EventSplitter()
        self._ended = False
        self._held = ExitStack()
        self._held.enter_context(worker.slot())

    def send(self, path: str, body: bytes, headers: Headers) -> None:
        """Begin. `answer` tells what comes of it."""
        self._opening = asyncio.create_task(self._open(path, body, headers))

    async def answer(self) -> UpstreamResponse:
        """The worker's answer once its head has come, if it is a 200. Raises ServingError. Cancelling it loses
        nothing."""
        assert self._opening is not None, "nothing was sent"
        return await asyncio.shield(self._opening)

    async def answer_in_time(self) -> UpstreamResponse | None:
        """The same, or None when nothing has come before a stream must be kept alive."""
        try:
            async with asyncio.timeout(self._keep_alive_s):
                return await self.answer()
        except TimeoutError:
            return None

    async def _open(self, path: str, body: bytes, headers: Headers) -> UpstreamResponse:
        info = self._worker.info
        response = await self._upstream.post(info.url + path, body, headers)
        self._held.callback(response.close)
        if response.status != 200:
            raise refusal(info, response.status, await response.read_all(), response.headers)
        return response

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
            if events := self._splitter.finish() if self._ended else self._splitter.feed(data):
                return events
        raise StopAsyncIteration

    async def _read(self) -> bytes:
        response = await self.answer()
        if not is_event_stream(response):
            raise WorkerFailed("The model's worker did not stream its answer.")
        return await response.read_some()

    async def aclose(self) -> None:
        """Give back the slot and the connection. Idempotent; what was not read to its end is dropped, and the worker
        stops working on it."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening})
            if not self._opening.cancelled():
                self._opening.exception()  # retrieved: whoever waited for it has it, or is gone
        self._held.close()


def media_type(response: UpstreamResponse) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_event_stream(response: UpstreamResponse) -> bool:
    return media_type(response) == _EVENT_STREAM
