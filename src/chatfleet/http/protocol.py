"""HTTP/1.1 as every server of ours speaks it: uvicorn's protocol, held to the letter and to bounds."""

import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from chatfleet.core.errors import HeadersTooLarge, InvalidRequest, RequestTimeout, ServingError, ShuttingDown
from chatfleet.http.answers import error_answer
from chatfleet.http.middleware import new_request_id

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_PIPELINED: Final = 8
KEEP_ALIVE_S: Final = 75.0
LINGER_S: Final = 2.0
"""How long a refused client may go on sending before its connection is cut, which may cost it our answer."""

STALLED_S: Final = 300.0
"""How long a client may leave unread what ends its connection, or what the answers behind it wait for."""

_SLICE_BYTES: Final = 16 * 1024
"""What is parsed at once of a head or of chunks, so that a bound is never missed by more."""

_MAX_CHUNK_HEAD_BYTES: Final = 16 * 1024
_MAX_UNREAD_BYTES: Final = 32 * 1024 * 1024
"""What a connection may go on sending after its answer, before it is cut."""

_FRAMING: Final = (b"content-length", b"transfer-encoding")


class Turn:
    """An answer that is given below ASGI, when the ones before it on its connection have been.

    Stands where uvicorn has a RequestResponseCycle, and has those of its attributes that the protocol looks at.
    """

    response_complete = False
    keep_alive = False
    head_is_sent = False
    """Whether the client has been told whether the connection stays open."""

    def start(self) -> None:
        """It is this one's turn. Its body may not be complete yet."""
        raise NotImplementedError

    def take(self, data: bytes) -> None:
        """A piece of the request's body. Raises ServingError, which refuses all that follows on the connection."""

    def complete(self) -> None:
        """The request's body is complete."""

    def refuse(self, error: ServingError) -> None:
        """The rest of the request will not come: answer with `error` and close, or break off the answer."""

    def lost(self) -> None:
        """The client is gone."""

    def tick(self, now: float) -> None:
        """Called every now and then while it is this one's turn; `now` is monotonic, in seconds."""

    def half_closed(self) -> None:
        """The client will send nothing more. It may be gone, or wait for the answer."""

    def pause(self) -> None:
        """The client does not read."""

    def resume(self) -> None:
        """It reads again."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with these differences.

    - What is not HTTP is refused with the one error form, in its turn among pipelined answers, and the connection is
      closed so that the client gets to read why. Stricter than llhttp: the only transfer coding is chunked.
    - Heads, what lies between chunks, and the time for head and body are bounded.
    - Every request of a connection is told that its client is gone, where uvicorn tells the last pipelined one only.
    - An offer to upgrade is ignored (RFC 9110, 7.8), where httptools drops the body of a request that makes one:
      Java's HTTP client offers h2c with every first request.
    - Trailers are dropped, where uvicorn takes them for headers (RFC 9110, 6.5.1).
    - A server that drains lets connections stay for `idle_linger_s` that were said to stay: a request that is on its
      way already is answered, with `connection: close`.
    - Requests may be answered below ASGI, as a Turn.

    Time is kept by `tick`, which the server calls: timers of their own would cost every request a microsecond.
    """

    idle_linger_s = 0.0
    serves_half_closed = False
    """Whether a client that has ended its side gets its answers all the same. Else it counts as gone."""

    def __init__(self, *args: Any, head_timeout_s: float = 20.0, body_timeout_s: float = 60.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout_s = head_timeout_s
        self._body_timeout_s = body_timeout_s
        self._head_bytes: int | None = None  # of an unfinished head; None while there is none
        self._idle_bytes = 0  # since the last progress within chunks
        self._is_chunked = False
        self._incomplete = False  # a request has begun whose body is not complete
        self._since = time.monotonic()  # the beginning of what is waited for
        self._active: RequestResponseCycle | Turn | None = None
        self._is_replaying = False
        self._is_refused = False  # whatever comes now is thrown away
        self._is_at_eof = False
        self._unread_bytes = 0  # that came and were thrown away
        self.is_draining = False

    # What comes from the client

    def data_received(self, data: bytes) -> None:
        if len(data) <= _SLICE_BYTES:
            self._feed(data)
        else:
            for start in range(0, len(data), _SLICE_BYTES):
                self._feed(data[start : start + _SLICE_BYTES])

    def _feed(self, data: bytes) -> None:
        while rest := self._parse(data):
            data = rest

    def _parse(self, data: bytes) -> bytes:
        """What is left behind an offer to upgrade, for a new parser."""
        if self._is_refused or self.transport.is_closing():
            self._throw_away(data)
            return b""
        upgrade_at = -1
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            upgrade_at = exc.args[0]
        except httptools.HttpParserCallbackError as exc:
            if isinstance(exc.__context__, ServingError):
                self._refuse(exc.__context__)
            elif isinstance(exc.__context__, httptools.HttpParserError):  # its target is no URL
                self._refuse(_not_http())
            else:
                raise
        except httptools.HttpParserError:
            self._refuse(_not_http())
        if upgrade_at >= 0:  # not in the except clause: the parser's own exceptions would lose their context
            self._ignore_upgrade()
            return data[upgrade_at:]
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadersTooLarge(MAX_HEAD_BYTES))
        elif self._is_chunked:
            self._idle_bytes += len(data)
            if self._idle_bytes > _MAX_CHUNK_HEAD_BYTES + _SLICE_BYTES:
                self._refuse(InvalidRequest("The chunks of the request body have too much between them."))
        return b""

    def _throw_away(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        if self._unread_bytes > _MAX_UNREAD_BYTES:
            self.transport.abort()

    def _ignore_upgrade(self) -> None:
        """Read on with a parser that was told how the body is framed, and of no upgrade."""
        framing = [b"%b: %b\r\n" % header for header in self.headers if header[0] in _FRAMING]
        self.parser = httptools.HttpRequestParser(self)
        self._is_replaying = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        self._is_replaying = False

    def on_message_begin(self) -> None:
        if self._is_replaying:
            return
        if self._is_refused or self.transport.is_closing():
            raise InvalidRequest("The connection ends with the answer before this request.")
        self._head_bytes = 0
        self._since = time.monotonic()
        self.url = b""
        self.headers = []

    def on_url(self, url: bytes) -> None:
        if not self._is_replaying:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_bytes is not None:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._is_replaying:
            return
        self._head_bytes = None
        self._since = time.monotonic()
        self._unread_bytes = 0
        version = self.parser.get_http_version()
        for name, value in self.headers:
            if name == b"transfer-encoding":
                if value.strip().lower() != b"chunked" or version != "1.1":
                    raise InvalidRequest("The only transfer-encoding of requests is chunked, in HTTP/1.1.")
                self._is_chunked = True
                self._idle_bytes = 0
        if version not in ("1.1", "1.0"):
            raise InvalidRequest(f"HTTP/{version} is not spoken here. Use HTTP/1.1.")
        turn = self.make_turn(version)
        if turn is None:
            self._begin_asgi()
            self._incomplete = True
        else:
            self._incomplete = True
            self.begin_turn(turn)

    def begin_turn(self, turn: Turn) -> None:
        """A request has come, though perhaps not all of it."""
        self.cycle = turn  # type: ignore[assignment]
        if self._active is None and not self.pipeline and not self.flow.write_paused:
            self._activate(turn)
        else:
            self._queue(turn)

    def have_turn(self, turn: Turn) -> None:
        """A request has come, whole, between others: it is its turn."""
        self.cycle = self._active = turn  # type: ignore[assignment]

    def is_between_requests(self) -> bool:
        """Whether what comes now is the beginning of a request, which can be answered at once."""
        return not (
            self._active
            or self._head_bytes is not None
            or self._incomplete
            or self.pipeline
            or self._is_refused
            or self.flow.write_paused
        )

    def make_turn(self, version: str) -> Turn | None:
        """The request whose head has come (`url`, `headers`), if it is to be answered below ASGI."""
        return None

    def _begin_asgi(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url, self.headers, self.scope["headers"] = url, headers, headers
        expects = (b"expect", b"100-continue") in [(name, value.lower()) for name, value in headers]
        self.expect_100_continue = expects and self.parser.get_http_version() == "1.1"
        was_reading = not self.flow.read_paused
        super().on_headers_complete()
        if self.is_draining:
            self.cycle.keep_alive = False
        if was_reading and len(self.pipeline) < MAX_PIPELINED:
            self.flow.resume_reading()  # who does not read does not see that the client is gone

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        if isinstance(self.cycle, Turn):
            self.cycle.take(body)
        elif self.cycle.response_complete:
            self._throw_away(body)
        else:
            super().on_body(body)

    def on_chunk_header(self) -> None:
        self._idle_bytes = 0

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._incomplete = self._is_chunked = False
        if isinstance(self.cycle, Turn):
            self.cycle.complete()
        else:
            super().on_message_complete()

    # Whose turn it is

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if isinstance(cycle, Turn):
            self._activate(cycle)
        else:
            self._active = cycle
            super()._start_asgi_task(cycle, app)

    def _activate(self, turn: Turn) -> None:
        self._active = turn
        turn.start()

    def _queue(self, turn: Turn) -> None:
        self.pipeline.appendleft((cast(RequestResponseCycle, turn), self.app))
        if len(self.pipeline) >= MAX_PIPELINED:
            self.flow.pause_reading()

    def turn_ended(self, *, close: bool) -> None:
        """The answer of the turn that it is has been given."""
        if close and self._incomplete:
            self.close_gently()
        elif close:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        ended, self._active = self._active, None
        self.server_state.total_requests += 1
        self._since = time.monotonic()
        if self.transport.is_closing():
            return
        if self._incomplete and self.expect_100_continue and ended is self.cycle and not isinstance(ended, Turn):
            self.close_gently()  # answered without its body, which the client may send or not
        if not self.flow.write_paused:
            self._go_on()
        elif not self._is_refused:
            self.flow.pause_reading()  # until the client reads, too: answers would pile up

    def _go_on(self) -> None:
        """An answer has been given, and not too much of it waits for the client."""
        self.flow.resume_reading()
        if self.pipeline:
            self.loop.call_soon(self._start_next)  # rather than at once: a thousand in a row would go deep
        elif self._is_at_eof or (self.is_draining and not self.idle_linger_s and not self._is_refused):
            self.transport.close()

    def _start_next(self) -> None:
        if self._active is None and self.pipeline and not (self.flow.write_paused or self.transport.is_closing()):
            self._start_asgi_task(*self.pipeline.pop())

    def _waiting(self) -> Iterator[RequestResponseCycle | Turn]:
        if self._active is not None:
            yield self._active
        yield from (cycle for cycle, _ in self.pipeline)

    # The end of it

    def _refuse(self, error: ServingError) -> None:
        """Answer with `error` once the answers before it are given, and read nothing more."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        latest = self.cycle
        if self._incomplete:
            if latest.response_complete:
                self.close_gently()
                return
            if isinstance(latest, Turn):
                latest.refuse(error)
                return
            if latest.response_started:
                self.transport.close()
                return
            self._give_up(latest)
        turn = _Refusal(self, error)
        if self._active is None and not self.pipeline:
            self._activate(turn)
        else:
            self.pipeline.appendleft((cast(RequestResponseCycle, turn), self.app))

    def _give_up(self, cycle: RequestResponseCycle) -> None:
        """The rest of an ASGI request's body will not come: for its application, the client is gone."""
        cycle.disconnected = True
        cycle.message_event.set()
        if cycle is not self._active:
            self.pipeline = deque(entry for entry in self.pipeline if entry[0] is not cycle)
        else:
            self._active = None

    def close_gently(self) -> None:
        """Close, but read on for a moment: bytes that come in after a plain close become a reset, and that may reach
        the client before our answer does."""
        self._is_refused = True
        self._since = time.monotonic()
        self.pipeline.clear()
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            else:
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in list(self._waiting()):
            if isinstance(cycle, Turn):
                cycle.lost()
            elif not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._active = None
        self.pipeline.clear()
        if isinstance(self.cycle, Turn):
            self.cycle = None  # type: ignore[assignment]
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open."""
        if not self.serves_half_closed or self.scheme == "https":
            return False
        if self._incomplete and not self._is_refused:  # it stays so, and gets no answer
            if self._active is self.cycle or not self.pipeline:
                return False
            self.pipeline.popleft()
            self._incomplete = False
        if not (self._active or self.pipeline):
            return False
        self._is_at_eof = True
        if isinstance(self._active, Turn):
            self._active.half_closed()
        return True

    def shutdown(self) -> None:
        self.is_draining = True
        self._since = time.monotonic()
        latest = self.pipeline[0][0] if self.pipeline else self._active
        if latest is not None:
            if not self.idle_linger_s or not _is_promised(latest):  # the last answer closes the connection
                latest.keep_alive = False
        elif not self.idle_linger_s and self._head_bytes is None:
            self.transport.close()

    def drop(self) -> None:
        """Break off what is being answered below ASGI: the server cannot wait for it."""
        if isinstance(self._active, Turn) and not self._active.response_complete:
            self._active.refuse(ShuttingDown())

    def tick(self, now: float) -> None:
        """Look after time: end what is too slow."""
        if isinstance(self._active, Turn):
            self._active.tick(now)
        waited_s = now - self._since
        if self.transport.is_closing() or (self._active is None and (self._is_refused or self.flow.write_paused)):
            if waited_s > self._parting_s():
                self.transport.abort()
        elif self._head_bytes is not None and self._active is None:
            if waited_s > self._head_timeout_s:
                self._refuse(RequestTimeout(f"The request's head did not arrive within {self._head_timeout_s:g} s."))
        elif self._incomplete and self._active is self.cycle and isinstance(self._active, Turn):
            if waited_s > self._body_timeout_s:
                self._refuse(RequestTimeout(f"The request body did not arrive within {self._body_timeout_s:g} s."))
        elif self._active is None and waited_s > self._idle_s():
            self.transport.close()

    def _parting_s(self) -> float:
        """How long a client may take over the last that it gets."""
        if self.transport.get_write_buffer_size():
            return STALLED_S
        if self.scheme == "https" and not self.is_draining:  # what a TLS transport has passed on, it does not count
            return STALLED_S
        return LINGER_S  # uvloop would wait for long until a TLS client says good-bye

    def _idle_s(self) -> float:
        """How long nothing may come."""
        if self._incomplete:  # of a body whose request has been answered
            return self._body_timeout_s
        return self.idle_linger_s if self.is_draining else KEEP_ALIVE_S

    def pause_writing(self) -> None:
        super().pause_writing()
        if isinstance(self._active, Turn):
            self._active.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if isinstance(self._active, Turn):
            self._active.resume()
        elif self._active is None and not self.transport.is_closing():
            self._go_on()


def _is_promised(cycle: RequestResponseCycle | Turn) -> bool:
    """Whether the client has been told that it may send another request: it may have done so."""
    return cycle.head_is_sent if isinstance(cycle, Turn) else cycle.response_started


def _not_http() -> InvalidRequest:
    return InvalidRequest("What was received is not a valid HTTP/1.1 request.")


class _Refusal(Turn):
    """The answer to what is no request."""

    def __init__(self, protocol: HttpProtocol, error: ServingError) -> None:
        self._protocol = protocol
        self._error = error

    def start(self) -> None:
        self.response_complete = True
        self._protocol.transport.write(error_answer(self._error, new_request_id(), keep_alive=False))
        self._protocol.close_gently()
        self._protocol.on_response_complete()
