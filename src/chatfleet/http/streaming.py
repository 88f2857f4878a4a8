"""Work that ends when its client goes away, and event streams that own what they stream."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chatfleet.core.errors import ServingError, ShuttingDown
from chatfleet.http.errors import as_serving_error, error_json

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LAST_WORDS_S = 1.0  # for a client that does not read

DONE = b"data: [DONE]\n\n"


def sse(data: bytes) -> bytes:
    """One server-sent event. Source: WHATWG HTML, "Server-sent events"; `data` is JSON, so one line."""
    return b"data: " + data + b"\n\n"


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away (raises ClientDisconnect).

    The request's body must have been read. When the caller is cancelled, so is `work`.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventSource(Protocol):
    """Whole server-sent events, one or several at a time. `aclose` is idempotent and frees what is behind them."""

    def __anext__(self) -> Awaitable[bytes]: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def aclose(self) -> Awaitable[None]: ...


class EventStreamResponse(Response):
    """Server-sent events from a source, closed on success, error and disconnect alike.

    Made by `open`, which reads the first event while there can still be a real HTTP status. An error
    later goes out as one `data:` event with the error object, then the stream ends without [DONE]. Where
    `can_be_continued`, a fault of ours goes without words: the connection is cut, and the gateway at its other end goes
    on with the stream elsewhere.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: EventSource, *, can_be_continued: bool = False) -> None:
        self._first = first
        self._events = events
        self._can_be_continued = can_be_continued
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.raw_headers = [header for header in self.raw_headers if header[0] != b"content-length"]

    @classmethod
    async def open(
        cls, receive: Receive, events: EventSource, *, can_be_continued: bool = False
    ) -> "EventStreamResponse":
        """Raises what the source raises before its first event, and ClientDisconnect."""
        try:
            first = await until_disconnect(receive, _next(events))
        except BaseException:
            await events.aclose()
            raise
        return cls(first, events, can_be_continued=can_be_continued)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await until_disconnect(receive, self._send_events(send))
        except asyncio.CancelledError:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._send_error(send, ShuttingDown())
            raise
        finally:
            await self._events.aclose()

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except Exception as exc:
            await self._send_error(send, as_serving_error(exc))
        else:
            await self._send_end(send, b"")

    async def _send_error(self, send: Send, error: ServingError) -> None:
        if self._can_be_continued and error.status >= 500:
            # Returning with the answer unfinished makes the server close the connection.
            logger.warning("a stream is cut, for its gateway to go on with it elsewhere: %s", error.message)
        else:
            await self._send_end(send, sse(error_json(error)))

    @staticmethod
    async def _send_end(send: Send, last: bytes) -> None:
        await send({"type": "http.response.body", "body": last, "more_body": False})


async def _next(events: EventSource) -> bytes:
    return await events.__anext__()
