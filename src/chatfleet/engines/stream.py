"""The worker's side of requests that are in an engine process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Protocol

import msgspec

from chatfleet.core.errors import EngineError, ServingError
from chatfleet.engines.base import TokenDelta
from chatfleet.engines.wire import Embedding


class RequestHolder(Protocol):
    """What holds requests: the link to the child."""

    loop: asyncio.AbstractEventLoop

    def cancel(self, request_id: int) -> None: ...


class Inbox:
    """What has come for one request and has not been read yet: at most one delta, so that a consumer that is slow
    costs no more memory than its tokens do."""

    __slots__ = ("_waiter", "closed", "ended", "error", "link", "pending", "request_id")

    def __init__(self, link: RequestHolder, request_id: int) -> None:
        self.link = link
        self.request_id = request_id
        self.pending: TokenDelta | None = None
        self.error: ServingError | None = None
        self.ended = False
        self.closed = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, delta: TokenDelta) -> None:
        if delta.fault is not None:
            if delta.token_ids:
                self._keep(msgspec.structs.replace(delta, fault=None))
            self.fail(delta.fault.to_error())
            return
        self._keep(delta)
        if delta.finish_reason is not None:
            self.ended = True
        elif not delta.token_ids:
            return
        self._wake()

    def fail(self, error: ServingError) -> None:
        """Tokens that are here already are read before the error is raised."""
        if self.pending is not None and not self.pending.token_ids:
            self.pending = None
        self.error = error
        self.ended = True
        self._wake()

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            self.link.cancel(self.request_id)
        self.closed = True
        self.pending = self.error = None
        self._wake()

    def take(self) -> TokenDelta | None:
        """The next delta, or None: wait. Raises StopAsyncIteration at the end, and the request's error."""
        if self.closed:
            raise StopAsyncIteration
        delta = self.pending
        if delta is not None and (delta.token_ids or self.ended):
            self.pending = None
            return delta
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.ended:
            raise StopAsyncIteration
        return None

    async def wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("a token stream has one reader at a time")
        self._waiter = self.link.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _keep(self, delta: TokenDelta) -> None:
        self.pending = delta if self.pending is None else _merged(self.pending, delta)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _merged(first: TokenDelta, second: TokenDelta) -> TokenDelta:
    """Both as one. Takes over the lists of `first`: a long backlog must not be copied at every step."""
    first.token_ids.extend(second.token_ids)
    logprobs = first.logprobs
    if logprobs is None:
        logprobs = second.logprobs
    elif second.logprobs is not None:
        logprobs.extend(second.logprobs)
    return TokenDelta(
        request_id=first.request_id,
        token_ids=first.token_ids,
        logprobs=logprobs,
        prompt_logprobs=second.prompt_logprobs if first.prompt_logprobs is None else first.prompt_logprobs,
        cached_tokens=second.cached_tokens if first.cached_tokens is None else first.cached_tokens,
        finish_reason=second.finish_reason,
    )


class ProcessTokenStream:
    """The deltas of one request (see `TokenStream`). Deltas that its reader did not come for in time are merged.

    Dropping the stream unclosed cancels the request too. A closed stream ends without an error.
    """

    __slots__ = ("_inbox",)

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        while (delta := self._inbox.take()) is None:
            await self._inbox.wait()
        return delta

    async def aclose(self) -> None:
        self._inbox.close()

    def __del__(self) -> None:
        if not self._inbox.ended:
            with suppress(RuntimeError):  # the loop is closed, and the child with it
                self._inbox.link.loop.call_soon_threadsafe(self._inbox.close)


class EmbedCall:
    """One `embed` call: its inputs are separate requests to the child."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.done: asyncio.Future[None] = loop.create_future()
        self.vectors: list[bytes] = [b""] * count
        self._missing = count

    def put(self, index: int, embedding: Embedding) -> None:
        if self.done.done():
            return
        if embedding.vector is None:
            fault = embedding.fault
            self.done.set_exception(fault.to_error() if fault is not None else EngineError("No embedding came."))
            return
        self.vectors[index] = embedding.vector
        self._missing -= 1
        if not self._missing:
            self.done.set_result(None)

    def fail(self, error: ServingError) -> None:
        if not self.done.done():
            self.done.set_exception(error)
