"""The client's side of a request: its body comes in, its answer goes out."""

import time
from collections.abc import Sequence
from typing import Final

from chatfleet.core.errors import ServingError
from chatfleet.dispatch.events import KEEP_ALIVE
from chatfleet.gateway.data_plane.heads import (
    CONTINUE,
    JSON_HEAD,
    PROCESSING,
    SMALL_BODY_BYTES,
    STREAM_HEAD,
    RequestHead,
    ignored_header,
)
from chatfleet.gateway.data_plane.plane import DataPlane
from chatfleet.http.answers import CONNECTION_CLOSE, date_line, error_answer
from chatfleet.http.body import MAX_BODY_BYTES, too_large
from chatfleet.http.errors import error_json
from chatfleet.http.middleware import new_request_id
from chatfleet.http.protocol import HttpProtocol, Turn
from chatfleet.http.streaming import sse
from chatfleet.observability.requests import CLIENT_GONE

_PROBE_S: Final = 0.05


class ClientTurn(Turn):
    """Takes in a request, and writes what `proceed` finds out to answer it with. Once the whole request is there and it
    is its turn, `proceed` is called, once.

    `finish` has to be called when the answer is given, and is when the client leaves, after `stop`.
    """

    body = b""
    head_is_sent = False
    _pieces: bytearray | None = None  # a body that came in several: chunks may be of a byte
    _size = 0
    _is_front = False
    _is_body_complete = False
    _must_close = False

    def __init__(self, protocol: HttpProtocol, plane: DataPlane, head: RequestHead) -> None:
        self.protocol = protocol
        self.loop = protocol.loop
        self.plane = plane
        self.head = head
        self._refusal = head.refusal
        self.request_id = head.request_id or new_request_id()
        self.started = time.monotonic()
        self.keep_alive = head.keep_alive and not protocol.is_draining

    def proceed(self) -> None:
        """The request is complete."""
        raise NotImplementedError

    def stop(self) -> None:
        """Let go of what is being done for it."""

    def finish(self, status: int) -> None:
        """The answer is given, or nobody waits for it (CLIENT_GONE). What overrides it calls it last."""
        self.response_complete = True
        duration_s = time.monotonic() - self.started
        self.count(status, duration_s)
        if (lines := self.plane.access_lines) is not None:
            client = lines.client(self.protocol.client, self.head.forwarded_for)
            lines.write(client, "POST", self.head.path, status, duration_s, self.request_id.decode())
        self.body = b""  # an idle connection still knows its last request
        self.protocol.turn_ended(close=not self.keep_alive)

    def count(self, status: int, duration_s: float) -> None:
        """For the metrics."""
        self.plane.metrics.of("", self.head.endpoint.path).ended(status, duration_s)

    # What comes from the client

    def start(self) -> None:
        self._is_front = True
        if self._is_body_complete:
            self._proceed()
        elif self._refusal is not None:
            close = self._must_close or self.head.expects_continue or not self.head.is_small
            self.answer_error(self._refusal, close=close)
        elif self.head.expects_continue and not self._size:
            self.write(CONTINUE)

    def take(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_BODY_BYTES:
            raise too_large()
        if self._refusal is not None or self.response_complete:
            return
        if not self.body:
            self.body = data
        elif self._pieces is None:
            self._pieces = bytearray(self.body + data)
        else:
            self._pieces += data

    def begin_whole(self, body: bytes) -> None:
        """It is this one's turn, it has come whole, and nothing is wrong with its head: all of `start`, `take` and
        `complete` in one."""
        self._is_front = self._is_body_complete = True
        self.body = body
        self.proceed()

    def complete(self) -> None:
        self._is_body_complete = True
        if self._pieces is not None:
            self.body = bytes(self._pieces)
            self._pieces = None
        if self._is_front:
            if not self.response_complete:
                self._proceed()
        elif self._size > SMALL_BODY_BYTES:
            self.protocol.flow.pause_reading()

    def _proceed(self) -> None:
        if self._refusal is not None:
            self.answer_error(self._refusal, close=self._must_close)
        else:
            self.proceed()

    def refuse(self, error: ServingError) -> None:
        if self.response_complete:
            return
        if not self._is_front:
            self._refusal = error
            self._must_close = True
            return
        self.stop()
        if self.head_is_sent:
            self.break_off(error, close=True)
        else:
            self.answer_error(error, close=True)

    def half_closed(self) -> None:
        if self.head_is_sent or self.head.understands_chunks:  # and 1xx
            self._probe()
            self.loop.call_later(_PROBE_S, self._probe)

    def _probe(self) -> None:
        """A client that is gone answers the first probe with a reset, which the second one meets."""
        if self.response_complete:
            return
        if self.head_is_sent:
            self.send_comment(KEEP_ALIVE)
        else:
            self.write(PROCESSING)

    def lost(self) -> None:
        if not self.response_complete:
            self.stop()
            self.finish(CLIENT_GONE)

    # The answer

    def answer_error(self, error: ServingError, *, close: bool = False) -> None:
        more = date_line(self.protocol.server_state) + self.head.cors
        self.keep_alive = self.keep_alive and not close
        self.write(error_answer(error, self.request_id, keep_alive=self.keep_alive, more=more))
        self.finish(error.status)

    def send_whole(self, body: bytes, ignored: Sequence[str]) -> None:
        """A whole answer. It is for the caller to end it."""
        self.write(b"%b%bcontent-length: %d\r\n\r\n%b" % (JSON_HEAD, self._headers(ignored), len(body), body))

    def send_stream_head(self, ignored: Sequence[str]) -> None:
        self.head_is_sent = True
        framing = b"transfer-encoding: chunked\r\n\r\n" if self.head.understands_chunks else b"\r\n"
        self.write(b"%b%b%b" % (STREAM_HEAD, self._headers(ignored), framing))

    def send_events(self, data: bytes) -> None:
        self.write(b"%x\r\n%b\r\n" % (len(data), data) if self.head.understands_chunks else data)

    def send_comment(self, comment: bytes) -> None:
        """What clients ignore, in a stream."""
        self.send_events(comment)

    def send_end(self) -> None:
        """Of a stream."""
        if self.head.understands_chunks:
            self.write(b"0\r\n\r\n")

    def break_off(self, error: ServingError, *, close: bool = False) -> None:
        """One error event, and the end of a stream that cannot go on."""
        self.send_events(sse(error_json(error)))
        self.send_end()
        if close:
            self.keep_alive = False
        self.finish(200)

    def write(self, data: bytes) -> None:
        if not self.protocol.transport.is_closing():
            self.protocol.transport.write(data)

    def _headers(self, ignored: Sequence[str]) -> bytes:
        return b"x-request-id: %b\r\n%b%b%b%b" % (
            self.request_id,
            date_line(self.protocol.server_state),
            self.head.cors,
            ignored_header(ignored) if ignored else b"",
            b"" if self.keep_alive else CONNECTION_CLOSE,
        )
