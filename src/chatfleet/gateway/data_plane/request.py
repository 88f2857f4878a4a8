"""A request on its way through the gateway, step by step."""

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Final

from chatfleet.core.errors import (
    FirstEventTimeout,
    LoopDetected,
    NoWorker,
    ServingError,
    StreamStalled,
    TotalTimeout,
    WorkerFailed,
)
from chatfleet.core.fleet import RECOVERY_HEADER, RECOVERY_IDS, RECOVERY_RESUME
from chatfleet.dispatch.attempts import Attempts
from chatfleet.dispatch.events import KEEP_ALIVE
from chatfleet.dispatch.exchange import Exchange
from chatfleet.dispatch.view import Worker
from chatfleet.gateway.data_plane.answer import ClientTurn
from chatfleet.gateway.data_plane.continuation import Continuation
from chatfleet.gateway.data_plane.delivered import DONE, CannotGoOn, Delivered, DeliveredIds
from chatfleet.gateway.data_plane.plane import Route
from chatfleet.gateway.endpoints import STORED_PATH
from chatfleet.gateway.requests import RoutingFields, build_parameters, read_affinity, read_routing
from chatfleet.http.body import OFF_LOOP_BYTES
from chatfleet.http.errors import as_serving_error
from chatfleet.http.protocol import STALLED_S
from chatfleet.store.store import Recording

MAX_HOPS: Final = 8
_JOINED_BYTES: Final = 64 * 1024
"""Bodies of less are copied behind their head: that costs less than to write two pieces."""

_SETTLED_S: Final = 1.0
"""After which a request that was sent again counts no more as one: whole answers may take long."""

_GIVE_IDS: Final = f"{RECOVERY_HEADER}: {RECOVERY_IDS}\r\n".encode()
_GO_ON: Final = f"{RECOVERY_HEADER}: {RECOVERY_RESUME}\r\n".encode()

_PROMPT_TOKENS: Final = re.compile(rb'"prompt_tokens"\s*:\s*([0-9]{1,12})\b')
_COMPLETION_TOKENS: Final = re.compile(rb'"completion_tokens"\s*:\s*([0-9]{1,12})\b')


class RelayedRequest(ClientTurn):
    """Takes one request to a worker and the answer back, and to another worker when that one fails.

    Every step is a method: once the request is complete, the model is found, a worker chosen, the request sent; events
    go to the client as they come. Whether the prompt fits the context is for the worker to say, which has the
    tokenizer, before its first event. When a worker fails, `Attempts` decides what comes next.
    """

    _route: Route | None = None
    _is_admitted = False
    _reading: asyncio.Task[None] | None = None
    _exchange: Exchange | None = None
    _attempts: Attempts | None = None
    _timer: asyncio.TimerHandle | None = None
    _ignored: Sequence[str] = ()
    _delivered: Delivered | None = None
    _recording: Recording | None = None  # of an answer that is to be kept
    _kind = ""  # of the worker that began the stream
    _usage_in = b""  # where the usage may be found
    _sent_at = 0.0
    _last = 0.0  # when events went to the client
    _heard_at = 0.0
    _quiet_since = 0.0
    _paused_since: float | None = None

    # On to a worker

    def proceed(self) -> None:
        if len(self.body) > OFF_LOOP_BYTES:
            self._reading = self.loop.create_task(self._read_large())
        else:
            try:
                self._routed(read_routing(self.body))
            except Exception as exc:
                self._give_up(as_serving_error(exc))

    async def _read_large(self) -> None:
        """Off the event loop, which others need."""
        try:
            self._routed(await asyncio.to_thread(read_routing, self.body))
        except Exception as exc:
            self._give_up(as_serving_error(exc))

    def _routed(self, routing: RoutingFields) -> None:
        """Raises ServingError."""
        self._routing = routing
        plane, head = self.plane, self.head
        if head.hops >= MAX_HOPS:
            raise LoopDetected(
                f"The request has come through {head.hops} gateways. One of them is probably registered as a server of "
                "its own fleet: see `chatfleet status`."
            )
        if plane.quarantine.until:
            plane.quarantine.check(head.endpoint.path, self.body, time.monotonic())
        if routing.store and routing.is_stored and head.endpoint.path == STORED_PATH:
            self._recording = plane.recording()
        plane.crowd.enter(self.started)
        self._is_admitted = True
        try:
            self._begin()
        except NoWorker as exc:
            self._attempts = Attempts.waiting(exc, plane.patience)
            self._try_again()

    def _begin(self) -> None:
        """Raises ServingError."""
        plane, head = self.plane, self.head
        self._route = route = plane.route(self._routing.model, head.endpoint)
        route.numbers.in_flight += 1
        self._affinity = read_affinity(self.body, route.policy, head.session)
        self._ask(plane.view.workers_of(route.model))

    def _ask(self, workers: Sequence[Worker]) -> None:
        """Raises ServingError."""
        route = self._route
        assert route is not None
        worker = route.policy.choose(workers, self._affinity, time.monotonic())
        if len(self.body) > OFF_LOOP_BYTES or self._delivered is not None:
            self._reading = self.loop.create_task(self._ask_large(worker))
        else:
            self._send(worker, *build_parameters(self.body, worker.info, self._routing.model, route.model))

    async def _ask_large(self, worker: Worker) -> None:
        try:
            body, ignored, delivered = await asyncio.to_thread(self._build_large, worker)
            self._delivered = delivered
            self._send(worker, body, ignored)
        except Exception as exc:
            self._give_up(as_serving_error(exc))

    def _build_large(self, worker: Worker) -> tuple[bytes, Sequence[str], Delivered | None]:
        """What to send, and what is delivered then. Raises ServingError."""
        route, delivered = self._route, self._delivered
        assert route is not None
        body, ignored = build_parameters(self.body, worker.info, self._routing.model, route.model)
        try:
            if isinstance(delivered, DeliveredIds):
                body = delivered.resume_body(body)
            elif delivered is not None:
                delivered = Continuation(delivered, body, self.plane.recovery_buffer_bytes)
                body = delivered.request
        except CannotGoOn as exc:
            assert self._attempts is not None and self._attempts.error is not None
            cause = self._attempts.error
            cause.message = f"{cause.message} No other worker can go on: {exc}."
            raise cause from exc
        return body, ignored, delivered

    def _send(self, worker: Worker, body: bytes, ignored: Sequence[str]) -> None:
        plane, head = self.plane, self.head
        self._ignored = ignored
        for_ours = b""
        if worker.info.kind == "chatfleet":
            for_ours = head.priority
            if self._routing.stream and head.endpoint.streams and plane.keeps_events:
                for_ours += _GIVE_IDS if self._delivered is None else _GO_ON
        start = plane.worker_head(worker, head.endpoint.path)
        request = b"%bx-request-id: %b\r\n%b%bcontent-length: %d\r\n\r\n" % (
            start,
            self.request_id,
            head.to_worker,
            for_ours,
            len(body),
        )
        self._exchange = exchange = Exchange(plane.upstream, worker, self)
        self._sent_at = time.monotonic()
        if self._paused_since is not None:
            exchange.pause()
        try:
            exchange.send((request + body,) if len(body) < _JOINED_BYTES else (request, body))
        except BaseException:
            exchange.abandon()
            raise

    # Back to the client

    def events(self, data: bytes) -> None:
        now = self._heard_at = time.monotonic()
        if data.startswith(b":") and b"\ndata:" not in data:
            self._send_comment(data, now)
            return
        delivered = self._delivered
        if delivered is None:
            delivered = self._begin_stream(now)
        elif self._route is not None:
            self._route.numbers.gap.observe(now - self._last)
        if self._attempts is not None:
            self.plane.retries.give_back(self)
        if data := delivered.add(data):
            self._last = self._quiet_since = now
            self.send_events(data)
            if self._recording is not None:
                self._recording.add(data)

    def _begin_stream(self, now: float) -> Delivered:
        assert self._route is not None and self._exchange is not None
        self._kind = self._exchange.worker.info.kind
        kept = DeliveredIds if self._kind == "chatfleet" else Delivered
        self._delivered = kept(self.plane.recovery_buffer_bytes)
        self._route.numbers.first_token.observe(now - self.started)
        if not self.head_is_sent:
            self.send_stream_head(self._all_ignored())
        return self._delivered

    def _send_comment(self, comment: bytes, now: float) -> None:
        if not self.head_is_sent:
            self.send_stream_head(self._all_ignored())
        self._quiet_since = now
        self.send_comment(comment)

    def ended(self) -> None:
        if not self.head_is_sent:
            self.send_stream_head(self._all_ignored())
        self.send_end()
        if self._delivered is not None:
            self._usage_in = self._delivered.tail()
        if self._recording is not None and self._route is not None:
            self._recording.keep_stream(*self._recorded(), self._route.numbers.count_stored)
        self.finish(200)

    def whole(self, body: bytes) -> None:
        if self.head_is_sent:
            self._give_up(WorkerFailed("The model's worker did not stream its answer."))
            return
        assert self._exchange is not None
        self.send_whole(body, self._all_ignored() if self._exchange.ignored else self._ignored)
        self._usage_in = body
        if self._recording is not None and self._route is not None:
            self._recording.keep_whole(*self._recorded(), body, self._route.numbers.count_stored)
        self.finish(200)

    def _recorded(self) -> tuple[bytes, str, bytes]:
        """Of an answer that is to be kept: whose it is, its request's id and body."""
        return self.head.owner, self.request_id.decode(), self.body

    # When a worker fails

    def failed(self, error: ServingError) -> None:
        try:
            self._after_failure(error)
        except Exception as exc:  # a fault of ours must not leave the client waiting
            self._give_up(as_serving_error(exc))

    def _after_failure(self, error: ServingError) -> None:
        exchange, delivered, now = self._exchange, self._delivered, time.monotonic()
        assert exchange is not None
        self._exchange = None
        self.plane.retries.give_back(self)
        if delivered is not None and delivered.lacks_end_only(self.body):
            self.send_events(delivered.add(DONE))
        if delivered is not None and delivered.is_done:
            self.ended()
            return
        if self._attempts is None:
            self._attempts = Attempts(self.plane.patience)
        has_begun = delivered is not None
        final = self._attempts.failed(
            error, exchange.worker, now, has_begun=has_begun, went_on=has_begun and self._last > self._sent_at
        )
        if final is None:
            self._try_again()
        else:
            self._give_up(final)

    def _try_again(self) -> None:
        """Ask another worker, now or a little later."""
        attempts, plane, now = self._attempts, self.plane, time.monotonic()
        assert attempts is not None
        has_begun = self._delivered is not None
        try:
            workers = self._others(attempts)
            if workers and plane.retries.take(self, plane.crowd.size):
                if self._route is None:
                    self._begin()
                else:
                    self._route.numbers.retries += 1
                    self._route.numbers.resumed += has_begun
                    self._ask(workers)
                return
            if (error := attempts.without_candidates(now, has_begun=has_begun, are_there=bool(workers))) is not None:
                raise error
        except Exception as exc:
            self._give_up(as_serving_error(exc))
        else:
            self._timer = self.loop.call_later(attempts.wait_s(), self._try_again)

    def _others(self, attempts: Attempts) -> Sequence[Worker]:
        """The workers that could answer it, or go on with it. Raises ModelNotFound."""
        plane = self.plane
        if self._route is None:
            try:
                route = plane.route(self._routing.model, self.head.endpoint)
            except NoWorker:
                return []
            return plane.view.workers_of(route.model)
        workers = attempts.candidates(plane.view.workers_of(self._route.model))
        if self._delivered is None:
            return workers
        return [worker for worker in workers if worker.info.kind == self._kind]

    def _give_up(self, error: ServingError) -> None:
        if self._attempts is not None and self._attempts.is_poison:
            self.plane.quarantine.add(self.head.endpoint.path, self.body, time.monotonic())
        if self.head_is_sent:
            self.break_off(error)
        else:
            self.answer_error(error)

    def tick(self, now: float) -> None:
        """End what takes too long, and send comments into a stream that is silent: a long prompt, or a worker that
        thinks."""
        plane, patience, exchange = self.plane, self.plane.patience, self._exchange
        if self._attempts is not None and exchange is not None and now - self._sent_at > _SETTLED_S:
            plane.retries.give_back(self)
        if self._paused_since is not None:
            if now - self._paused_since > STALLED_S:
                self.protocol.transport.abort()
        elif now - self.started > patience.total_s and self._is_admitted:
            self.stop()
            self._give_up(TotalTimeout(f"The request took longer than {patience.total_s:g} s (--total-timeout)."))
        elif not self._is_admitted or not (self.head.endpoint.streams and self._routing.stream):
            return
        elif exchange is not None and self._is_overdue(now):
            exchange.give_up(self._overdue_error())
        elif now - max(self.started, self._quiet_since) >= plane.keep_alive_s:
            self._send_comment(KEEP_ALIVE, now)

    def _is_overdue(self, now: float) -> bool:
        patience = self.plane.patience
        if self._heard_at > self._sent_at:
            return now - self._heard_at > patience.stall_s
        return now - self._sent_at > patience.first_event_s

    def _overdue_error(self) -> WorkerFailed:
        patience = self.plane.patience
        if self._heard_at <= self._sent_at:
            return FirstEventTimeout(
                f"The model's worker did not begin to answer within {patience.first_event_s:g} s "
                "(--first-event-timeout)."
            )
        return StreamStalled(f"The model's worker was silent for {patience.stall_s:g} s (--stall-timeout).")

    def pause(self) -> None:
        self._paused_since = time.monotonic()
        if self._exchange is not None:
            self._exchange.pause()

    def resume(self) -> None:
        self._paused_since = None
        self._heard_at = time.monotonic()
        if self._exchange is not None:
            self._exchange.resume()

    def _all_ignored(self) -> Sequence[str]:
        of_worker = "" if self._exchange is None else self._exchange.ignored
        if not of_worker:
            return self._ignored
        return [*self._ignored, *(name.strip() for name in of_worker.split(",") if name.strip())]

    def break_off(self, error: ServingError, *, close: bool = False) -> None:
        if self._route is not None:
            self._route.numbers.streams_broken += 1
        super().break_off(error, close=close)

    def stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._exchange is not None:
            self._exchange.abandon()

    def count(self, status: int, duration_s: float) -> None:
        if self._is_admitted:
            self.plane.crowd.leave(self.started + duration_s)
        if self._attempts is not None:
            self.plane.retries.give_back(self)
        if (route := self._route) is None:
            super().count(status, duration_s)
        else:
            route.numbers.in_flight -= 1
            route.numbers.ended(status, duration_s, *_usage(self._usage_in))
        if self._recording is not None:
            self._recording.close()
        self._delivered = self._exchange = self._attempts = self._recording = None
        self._usage_in = b""


def _usage(answer: bytes) -> tuple[int | None, int | None]:
    """The tokens of prompt and completion, where the end of an answer tells."""
    start = answer.rfind(b'"usage"')
    if start < 0:
        return None, None
    prompt, completion = _PROMPT_TOKENS.search(answer, start), _COMPLETION_TOKENS.search(answer, start)
    return prompt and int(prompt[1]), completion and int(completion[1])
