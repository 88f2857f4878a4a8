"""A request on its way through the gateway, step by step."""

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Final

from chatfleet.core.errors import LoopDetected, ServingError, WorkerFailed, WorkerUnreachable
from chatfleet.dispatch.events import KEEP_ALIVE
from chatfleet.dispatch.exchange import Exchange
from chatfleet.dispatch.view import Worker
from chatfleet.gateway.data_plane.delivered import Delivered
from chatfleet.gateway.data_plane.heads import (
    CONTINUE,
    JSON_HEAD,
    PROCESSING,
    SMALL_BODY_BYTES,
    STREAM_HEAD,
    RequestHead,
    ignored_header,
)
from chatfleet.gateway.data_plane.plane import DataPlane, Route
from chatfleet.gateway.requests import RoutingFields, build_parameters, read_affinity, read_routing
from chatfleet.http.answers import CONNECTION_CLOSE, date_line, error_answer
from chatfleet.http.body import MAX_BODY_BYTES, OFF_LOOP_BYTES, too_large
from chatfleet.http.errors import as_serving_error, error_json
from chatfleet.http.middleware import new_request_id
from chatfleet.http.protocol import STALLED_S, HttpProtocol, Turn
from chatfleet.http.streaming import sse
from chatfleet.observability.requests import CLIENT_GONE

MAX_HOPS: Final = 8
_JOINED_BYTES: Final = 64 * 1024
"""Bodies of less are copied behind their head: that costs less than to write two pieces."""

_PROBE_S: Final = 0.05
_PROMPT_TOKENS: Final = re.compile(rb'"prompt_tokens"\s*:\s*([0-9]{1,12})\b')
_COMPLETION_TOKENS: Final = re.compile(rb'"completion_tokens"\s*:\s*([0-9]{1,12})\b')


class RelayedRequest(Turn):
    """Takes one request to a worker and the answer back.

    Every step is a method: the head is checked when it has come; once it is this request's turn and its body is
    complete, the model is found, a worker chosen, the request sent; events go to the client as they come. Whether the
    prompt fits the context is for the worker to say, which has the tokenizer, before its first event.
    """

    _body = b""
    _pieces: bytearray | None = None  # a body that came in several: chunks may be of a byte
    _size = 0
    _is_front = False
    _is_body_complete = False
    _must_close = False
    _head_is_sent = False
    _route: Route | None = None
    _reading: asyncio.Task[None] | None = None
    _exchange: Exchange | None = None
    _unreachable: tuple[Worker, ...] = ()
    _ignored: Sequence[str] = ()
    _delivered: Delivered | None = None
    _last = 0.0  # when events went to the client
    _quiet_since = 0.0
    _paused_since: float | None = None

    def __init__(self, protocol: HttpProtocol, plane: DataPlane, head: RequestHead) -> None:
        self._protocol = protocol
        self._plane = plane
        self._head = head
        self._refusal = head.refusal
        self._request_id = head.request_id or new_request_id()
        self._started = time.monotonic()
        self.keep_alive = head.keep_alive and not protocol.is_draining

    # What comes from the client

    def start(self) -> None:
        self._is_front = True
        if self._is_body_complete:
            self._proceed()
        elif self._refusal is not None:
            close = self._must_close or self._head.expects_continue or not self._head.is_small
            self._answer_error(self._refusal, close=close)
        elif self._head.expects_continue and not self._size:
            self._write(CONTINUE)

    def take(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_BODY_BYTES:
            raise too_large()
        if self._refusal is not None or self.response_complete:
            return
        if not self._body:
            self._body = data
        elif self._pieces is None:
            self._pieces = bytearray(self._body + data)
        else:
            self._pieces += data

    def begin_whole(self, body: bytes) -> None:
        """It is this one's turn, and its body is complete: `start`, `take` and `complete` in one."""
        self._is_front = self._is_body_complete = True
        self._body = body
        self._proceed()

    def complete(self) -> None:
        self._is_body_complete = True
        if self._pieces is not None:
            self._body = bytes(self._pieces)
            self._pieces = None
        if self._is_front:
            if not self.response_complete:
                self._proceed()
        elif self._size > SMALL_BODY_BYTES:
            self._protocol.flow.pause_reading()

    def refuse(self, error: ServingError) -> None:
        if self.response_complete:
            return
        if not self._is_front:
            self._refusal = error
            self._must_close = True
            return
        self._stop()
        if self._head_is_sent:
            self._break_off(error, close=True)
        else:
            self._answer_error(error, close=True)

    def half_closed(self) -> None:
        if self._head_is_sent:  # what is written from now on tells whether anybody reads
            return
        if self._head.understands_chunks:  # and 1xx
            self._write(PROCESSING)
            self._protocol.loop.call_later(_PROBE_S, self._probe_again)

    def _probe_again(self) -> None:
        """A client that is gone has answered the first probe with a reset, which the second one meets."""
        if not self._head_is_sent and not self.response_complete:
            self._write(PROCESSING)

    def lost(self) -> None:
        if not self.response_complete:
            self._stop()
            self._end(CLIENT_GONE)

    # On to a worker

    def _proceed(self) -> None:
        if self._refusal is not None:
            self._answer_error(self._refusal, close=self._must_close)
        elif len(self._body) > OFF_LOOP_BYTES:
            self._reading = self._protocol.loop.create_task(self._read_large())
        else:
            try:
                self._routed(read_routing(self._body))
            except Exception as exc:
                self._answer_error(as_serving_error(exc))

    async def _read_large(self) -> None:
        """Off the event loop, which others need."""
        try:
            self._routed(await asyncio.to_thread(read_routing, self._body))
        except Exception as exc:
            self._answer_error(as_serving_error(exc))

    def _routed(self, routing: RoutingFields) -> None:
        """Raises ServingError."""
        self._routing = routing
        self._route = route = self._plane.route(routing.model, self._head.endpoint)
        route.numbers.in_flight += 1
        self._affinity = read_affinity(self._body, route.policy, self._head.session)
        self._ask(self._plane.view.workers_of(route.model))

    def _ask(self, workers: Sequence[Worker]) -> None:
        """Raises ServingError."""
        route, head = self._route, self._head
        assert route is not None
        if head.hops >= MAX_HOPS:
            raise LoopDetected(
                f"The request has come through {head.hops} gateways. One of them is probably registered as a server of "
                "its own fleet: see `chatfleet status`."
            )
        worker = route.policy.choose(workers, self._affinity, time.monotonic())
        if len(self._body) > OFF_LOOP_BYTES:
            self._reading = self._protocol.loop.create_task(self._ask_large(worker, route))
        else:
            self._send(worker, *build_parameters(self._body, worker.info, self._routing.model, route.model))

    async def _ask_large(self, worker: Worker, route: Route) -> None:
        try:
            parameters = await asyncio.to_thread(
                build_parameters, self._body, worker.info, self._routing.model, route.model
            )
            self._send(worker, *parameters)
        except Exception as exc:
            self.failed(as_serving_error(exc))

    def _send(self, worker: Worker, body: bytes, ignored: Sequence[str]) -> None:
        plane, head = self._plane, self._head
        self._ignored = ignored
        start = plane.worker_head(worker, head.endpoint.path)
        request = b"%bx-request-id: %b\r\n%bcontent-length: %d\r\n\r\n" % (
            start,
            self._request_id,
            head.to_worker,
            len(body),
        )
        self._exchange = exchange = Exchange(plane.upstream, worker, self)
        if self._paused_since is not None:
            exchange.pause()
        try:
            exchange.send((request + body,) if len(body) < _JOINED_BYTES else (request, body))
        except BaseException:
            exchange.abandon()
            raise

    # Back to the client

    def events(self, data: bytes) -> None:
        if data.startswith(b":") and b"\ndata:" not in data:
            self._send_comment(data)
            return
        now = time.monotonic()
        assert self._route is not None
        if self._delivered is None:
            self._delivered = Delivered(self._plane.recovery_buffer_bytes)
            self._route.numbers.first_token.observe(now - self._started)
            if not self._head_is_sent:
                self._send_stream_head()
        else:
            self._route.numbers.gap.observe(now - self._last)
        self._last = self._quiet_since = now
        self._delivered.add(data)
        self._send_events(data)

    def _send_comment(self, comment: bytes) -> None:
        if not self._head_is_sent:
            self._send_stream_head()
        self._quiet_since = time.monotonic()
        self._send_events(comment)

    def ended(self) -> None:
        if not self._head_is_sent:
            self._send_stream_head()
        if self._head.understands_chunks:
            self._write(b"0\r\n\r\n")
        self._end(200, b"" if self._delivered is None else self._delivered.tail())

    def whole(self, body: bytes) -> None:
        if self._head_is_sent:
            self._break_off(WorkerFailed("The model's worker did not stream its answer."))
            return
        self._write(b"%b%bcontent-length: %d\r\n\r\n%b" % (JSON_HEAD, self._headers(), len(body), body))
        self._end(200, body)

    def failed(self, error: ServingError) -> None:
        if isinstance(error, WorkerUnreachable) and self._asked_another():
            return
        if self._head_is_sent:
            self._break_off(error)
        else:
            self._answer_error(error)

    def _asked_another(self) -> bool:
        """Whether there is another worker, which has the request now."""
        assert self._exchange is not None and self._route is not None
        self._unreachable += (self._exchange.worker,)
        workers = self._plane.view.workers_of(self._route.model)
        others = [worker for worker in workers if worker not in self._unreachable]
        if not others:
            return False
        self._route.numbers.retries += 1
        self._exchange = None
        try:
            self._ask(others)
        except Exception as exc:
            self.failed(as_serving_error(exc))
        return True

    def tick(self, now: float) -> None:
        """Comments into a stream that is silent: a long prompt, or a worker that thinks."""
        if self._paused_since is not None:
            if now - self._paused_since > STALLED_S:
                self._protocol.transport.abort()
        elif (
            self._exchange is not None
            and self._head.endpoint.streams
            and self._routing.stream
            and now - max(self._started, self._quiet_since) >= self._plane.keep_alive_s
        ):
            self._send_comment(KEEP_ALIVE)

    def pause(self) -> None:
        self._paused_since = time.monotonic()
        if self._exchange is not None:
            self._exchange.pause()

    def resume(self) -> None:
        self._paused_since = None
        if self._exchange is not None:
            self._exchange.resume()

    def _headers(self) -> bytes:
        ignored = b""
        of_worker = "" if self._exchange is None else self._exchange.ignored
        if self._ignored or of_worker:
            ignored = ignored_header([*self._ignored, *(name.strip() for name in of_worker.split(",") if name.strip())])
        return b"x-request-id: %b\r\n%b%b%b%b" % (
            self._request_id,
            date_line(self._protocol.server_state),
            self._head.cors,
            ignored,
            b"" if self.keep_alive else CONNECTION_CLOSE,
        )

    def _send_stream_head(self) -> None:
        self._head_is_sent = True
        framing = b"transfer-encoding: chunked\r\n\r\n" if self._head.understands_chunks else b"\r\n"
        self._write(b"%b%b%b" % (STREAM_HEAD, self._headers(), framing))

    def _answer_error(self, error: ServingError, *, close: bool = False) -> None:
        more = date_line(self._protocol.server_state) + self._head.cors
        self.keep_alive = self.keep_alive and not close
        self._write(error_answer(error, self._request_id, keep_alive=self.keep_alive, more=more))
        self._end(error.status)

    def _break_off(self, error: ServingError, *, close: bool = False) -> None:
        """One error event, and the end of a stream that cannot go on."""
        self._send_events(sse(error_json(error)))
        if self._head.understands_chunks:
            self._write(b"0\r\n\r\n")
        if close:
            self.keep_alive = False
        if self._route is not None:
            self._route.numbers.streams_broken += 1
        self._end(200)

    def _send_events(self, data: bytes) -> None:
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._head.understands_chunks else data)

    def _write(self, data: bytes) -> None:
        if not self._protocol.transport.is_closing():
            self._protocol.transport.write(data)

    def _stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        if self._exchange is not None:
            self._exchange.abandon()

    def _end(self, status: int, answer: bytes = b"") -> None:
        """The answer is given, or nobody waits for it. `answer` is where the usage may be found."""
        self.response_complete = True
        duration_s = time.monotonic() - self._started
        if (route := self._route) is None:
            self._plane.metrics.of("", self._head.endpoint.path).ended(status, duration_s)
        else:
            route.numbers.in_flight -= 1
            route.numbers.ended(status, duration_s, *_usage(answer))
        if (lines := self._plane.access_lines) is not None:
            client = lines.client(self._protocol.client, self._head.forwarded_for)
            lines.write(client, "POST", self._head.path, status, duration_s, self._request_id.decode())
        self._body, self._delivered, self._exchange = b"", None, None  # an idle connection still knows its last request
        self._protocol.turn_ended(close=not self.keep_alive)


def _usage(answer: bytes) -> tuple[int | None, int | None]:
    """The tokens of prompt and completion, where the end of an answer tells."""
    start = answer.rfind(b'"usage"')
    if start < 0:
        return None, None
    prompt, completion = _PROMPT_TOKENS.search(answer, start), _COMPLETION_TOKENS.search(answer, start)
    return prompt and int(prompt[1]), completion and int(completion[1])
