"""One connection to a worker: HTTP/1.1 from the client's side."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol, cast

import httptools

from chatfleet.core.errors import WorkerBrokeOff, WorkerFailed
from chatfleet.dispatch.events import BROKE_OFF
from chatfleet.http.known_head import MAX_MISSES, KnownHead

MAX_HEAD_BYTES: Final = 64 * 1024

Headers = dict[bytes, bytes]
"""Header fields by name in lower case. Of a name that came several times it is the last."""

NOT_HTTP: Final = "The model's worker did not answer as HTTP wants it."


class Receiver(Protocol):
    """Who waits for an answer. Nothing is called after `answer_ended` or `answer_failed`."""

    def answer_began(self, status: int, headers: Headers) -> None: ...

    def answer_data(self, data: bytes) -> None: ...

    def answer_ended(self, *, is_framed: bool) -> None:
        """The body is complete: as its framing says, or, without any, because the connection ended."""

    def answer_failed(self, error: WorkerFailed) -> None: ...

    def went_stale(self) -> None:
        """The connection was an old one, and ended before any byte of an answer: the worker had closed it before it
        saw the request, or while it did."""


class Home(Protocol):
    """Where a connection belongs while it is not in use."""

    def made(self, connection: "WorkerConnection") -> None: ...

    def take_back(self, connection: "WorkerConnection") -> None: ...

    def forget(self, connection: "WorkerConnection") -> None: ...


class WorkerConnection(asyncio.Protocol):
    """Carries one request at a time. Its answer is read as it comes, unless paused. A whole answer whose head was that
    of the one before passes by the parser, which stays where it was."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._is_paused = False
        self._uses = 0
        self._misses = 0
        self._known_head: KnownHead | None = None
        self._known_answer: tuple[int, Headers] = (0, {})
        self.idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self._first = b""  # what came first of the answer
        self._headers: Headers = {}
        self._head_bytes = 0  # that came of an unfinished head
        self._header_bytes = 0  # that were parsed
        self._body: list[bytes] = []
        self._has_begun = False  # a byte of the answer has come
        self._is_head_complete = False
        self._is_told = False
        self._is_framed = False
        self._is_complete = False
        self._keeps_alive = False
        self._status = 0

    @property
    def is_usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own, which is none of asyncio's classes
        self._home.made(self)

    def send(self, request: Sequence[bytes], receiver: Receiver) -> None:
        """A whole request, in pieces. The connection must be usable and not in use."""
        assert self._transport is not None
        self._receiver = receiver
        self._uses += 1
        self._transport.writelines(request)

    def pause(self) -> None:
        """Read nothing more until `resume`: the worker will notice once its buffers are full."""
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def abandon(self) -> None:
        """Nobody waits for the answer any more: cut the connection, so that the worker stops."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:  # nothing was asked
            self.abandon()
            return
        if not self._has_begun:
            known = self._known_head
            if known is not None and (body := known.body_of(data)) is not None:
                self._misses = 0
                self._give_whole(receiver, body)
                return
            self._first = data
        self._has_begun = True
        problem = ""
        try:
            self._parser.feed_data(data)
            if not self._is_head_complete:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    problem = "The head of the worker's answer is too large."
        except httptools.HttpParserCallbackError as exc:
            problem = str(exc.__context__)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._keeps_alive = False
            if not self._is_complete:
                problem = NOT_HTTP
        if not problem or self._body or self._is_complete:
            self._deliver()
        if problem:
            self._fail(problem)

    def _give_whole(self, receiver: Receiver, body: bytes) -> None:
        """An answer whose head was that of the one before: the parser has not seen it."""
        receiver.answer_began(*self._known_answer)
        if self._receiver is not None:
            receiver.answer_data(body)
        if self._receiver is not None:
            self._receiver = None
            self._release()
            receiver.answer_ended(is_framed=True)

    def _deliver(self) -> None:
        """Tell what has come. Whoever is told may abandon the connection."""
        if self._is_head_complete and not self._is_told:
            self._is_told = True
            if self._receiver is not None:
                self._receiver.answer_began(self._status, self._headers)
        if self._body:
            body = self._body
            data = body[0] if len(body) == 1 else b"".join(body)
            self._body = []
            if self._receiver is not None:
                self._receiver.answer_data(data)
        if self._is_complete and (receiver := self._receiver) is not None:
            self._receiver = None
            if self._keeps_alive:
                if self._misses < MAX_MISSES:
                    self._misses += 1
                    self._known_answer = self._status, self._headers
                    self._known_head = KnownHead.of(self._first)
                self._begin()
                self._release()
            else:
                self.abandon()
            receiver.answer_ended(is_framed=True)

    def _release(self) -> None:
        """Be there for the next request, if there can be one."""
        transport = self._transport
        assert transport is not None
        if transport.is_closing() or transport.get_write_buffer_size():
            transport.abort()
        else:
            self.resume()
            self._home.take_back(self)

    def _fail(self, problem: str) -> None:
        receiver = self._receiver
        self.abandon()
        if receiver is not None:
            receiver.answer_failed(WorkerFailed(problem))

    def connection_lost(self, exc: Exception | None) -> None:
        self._home.forget(self)
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if not self._has_begun and self._uses > 1:
            receiver.went_stale()
        elif self._is_head_complete and not self._is_framed and exc is None:
            receiver.answer_ended(is_framed=False)
        else:
            receiver.answer_failed(WorkerBrokeOff(BROKE_OFF))

    # The parser's

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_head_complete:  # a trailer
            return
        name = name.lower()
        self._headers[name] = value
        self._header_bytes += len(name) + len(value) + 4
        if name == b"content-length":
            self._is_framed = True
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise WorkerFailed(NOT_HTTP)
            self._is_framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            if status < 100 or status == 101:
                raise WorkerFailed(NOT_HTTP)
            return
        if self._is_complete:  # a second answer to one request
            raise WorkerFailed(NOT_HTTP)
        if self._header_bytes > MAX_HEAD_BYTES:
            raise WorkerFailed("The head of the worker's answer is too large.")
        self._status = status
        self._is_head_complete = True

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._is_head_complete:  # a 1xx: the answer is still to come
            self._headers = {}
            self._first = b""
            self._is_framed = False
            return
        self._is_complete = True
        self._keeps_alive = self._parser.should_keep_alive()

    def on_message_begin(self) -> None:
        if self._is_complete:  # more than was asked for
            self._keeps_alive = False
