"""Requests with an Idempotency-Key, in the process that has their answers."""

import asyncio
import time
from collections.abc import Sequence

from chatfleet.core.errors import ServingError, TotalTimeout
from chatfleet.gateway.data_plane.answer import ClientTurn
from chatfleet.gateway.data_plane.heads import IDEMPOTENT_REPLAYED, RequestHead
from chatfleet.gateway.data_plane.idempotency import Answer, IdempotencyStore, digest_of
from chatfleet.gateway.data_plane.plane import DataPlane
from chatfleet.gateway.data_plane.request import RelayedRequest
from chatfleet.http.body import OFF_LOOP_BYTES
from chatfleet.http.errors import as_serving_error
from chatfleet.http.protocol import STALLED_S, HttpProtocol


class Generation(RelayedRequest):
    """A request that goes to a worker once for all who have sent it, and goes on when none of them is there. What would
    go to a client goes into an answer."""

    def __init__(self, keyed: "IdempotentRequests", first: ClientTurn, answer: Answer) -> None:
        # Not the one of a turn, which has a connection.
        self.loop = first.loop
        self.plane = first.plane
        self.head = first.head
        self.body = first.body
        self.request_id = first.request_id
        self.started = first.started
        self._keyed = keyed
        self._answer = answer
        self._broken: ServingError | None = None

    def answer_error(self, error: ServingError, *, close: bool = False) -> None:
        self._answer.fail(error)
        self.finish(error.status)

    def send_whole(self, body: bytes, ignored: Sequence[str]) -> None:
        self._answer.give_whole(body, ignored, time.monotonic())

    def send_stream_head(self, ignored: Sequence[str]) -> None:
        self.head_is_sent = True
        self._answer.begin(ignored)

    def send_comment(self, comment: bytes) -> None:
        self._answer.comment(comment)

    def send_events(self, data: bytes) -> None:
        if self._broken is None or self._answer.size:
            self._answer.add(data)

    def send_end(self) -> None:
        if self._broken is None or self._answer.size:
            self._answer.end(time.monotonic())
        else:
            self._answer.fail(self._broken)  # only comments have come: that is no answer to keep

    def break_off(self, error: ServingError, *, close: bool = False) -> None:
        self._broken = error
        super().break_off(error, close=close)

    def finish(self, status: int) -> None:
        self.response_complete = True
        if not self._answer.is_over:
            self._answer.abandon(time.monotonic())
        self.count(status, time.monotonic() - self.started)
        self.body = b""
        self._answer.writer = None
        self._keyed.generations.discard(self)

    def unread(self) -> None:
        self.loop.call_soon(self.lost)  # what tells of it may be in the midst of telling us of events

    def tick(self, now: float) -> None:
        if self._paused_since is None:
            super().tick(now)
        elif now - self.started > (total_s := self.plane.patience.total_s):
            self.give_up(TotalTimeout(f"The request took longer than {total_s:g} s (--total-timeout)."))

    def give_up(self, error: ServingError) -> None:
        """Stop, and have all readers told why: what ended without a word would look whole to them."""
        if not self.response_complete:
            self.stop()
            self._give_up(error)


class IdempotentRequest(ClientTurn):
    """Gets the answer from its start, whoever was the first to ask."""

    offset = 0
    _answer: Answer | None = None
    _digesting: asyncio.Task[None] | None = None
    _is_replay = False
    _is_admitted = False
    _paused_since: float | None = None

    def __init__(
        self, protocol: HttpProtocol, plane: DataPlane, head: RequestHead, keyed: "IdempotentRequests"
    ) -> None:
        super().__init__(protocol, plane, head)
        self._keyed = keyed

    def proceed(self) -> None:
        if len(self.body) > OFF_LOOP_BYTES:
            self._digesting = self.loop.create_task(self._open_large())
        else:
            self._open(digest_of(self.body))

    async def _open_large(self) -> None:
        self._open(await asyncio.to_thread(digest_of, self.body))

    def _open(self, body_digest: bytes) -> None:
        try:
            answer = self._find(body_digest)
        except Exception as exc:
            self.answer_error(as_serving_error(exc))
            return
        self._answer = answer
        answer.join(self)
        if self._is_replay:
            self.advance()
        else:
            answer.writer = generation = Generation(self._keyed, self, answer)
            self._keyed.generations.add(generation)
            generation.proceed()
        self.body = b""

    def _find(self, body_digest: bytes) -> Answer:
        """Raises ServingError."""
        scope = self.head.scope
        assert scope is not None
        answer, is_new = self._keyed.store.open(scope, body_digest, time.monotonic())
        if not is_new:
            self.plane.crowd.enter(self.started)
            self._is_admitted = self._is_replay = True
            self.plane.metrics.of("", self.head.endpoint.path).idempotent_replays += 1
        return answer

    def advance(self) -> None:
        answer = self._answer
        assert answer is not None
        if answer.error is not None:
            self._give_up(answer.error)
        elif answer.whole is not None:
            self.send_whole(answer.whole, answer.ignored)
            self.finish(200)
        elif answer.has_begun and self._paused_since is None:
            self._send_what_is_new(answer)

    def _give_up(self, error: ServingError) -> None:
        if self.head_is_sent:
            self.break_off(error)
        else:
            self.answer_error(error)

    def _send_what_is_new(self, answer: Answer) -> None:
        if not self.head_is_sent:
            self.send_stream_head(answer.ignored)
        while self._paused_since is None and (events := answer.read(self.offset)):
            self.offset += len(events)
            self.send_events(events)
        if answer.has_ended and self.offset == answer.size:
            self.send_end()
            self.finish(200)

    def comment(self, data: bytes) -> None:
        if self.head_is_sent and self._paused_since is None:
            self.send_comment(data)

    def pause(self) -> None:
        self._paused_since = time.monotonic()

    def resume(self) -> None:
        self._paused_since = None
        if self._answer is not None:
            self.advance()
            self._answer.drop_read()

    def tick(self, now: float) -> None:
        if self._paused_since is not None and now - self._paused_since > STALLED_S:
            self.protocol.transport.abort()

    def stop(self) -> None:
        if self._digesting is not None:
            self._digesting.cancel()
        if self._answer is not None:
            self._answer.leave(self)

    def finish(self, status: int) -> None:
        if self._answer is not None:
            self._answer.leave(self)
        super().finish(status)

    def count(self, status: int, duration_s: float) -> None:
        if self._is_admitted:
            self.plane.crowd.leave(self.started + duration_s)
        if self._answer is None:  # else the generation is counted
            super().count(status, duration_s)

    def _headers(self, ignored: Sequence[str]) -> bytes:
        return (IDEMPOTENT_REPLAYED if self._is_replay else b"") + super()._headers(ignored)


class IdempotentRequests:
    """Answers all requests with a key. `generations` are those that are on their way."""

    def __init__(self, max_bytes: int) -> None:
        self.store = IdempotencyStore(max_bytes)
        self.generations: set[Generation] = set()

    def turn(self, protocol: HttpProtocol, plane: DataPlane, head: RequestHead) -> IdempotentRequest:
        return IdempotentRequest(protocol, plane, head, self)

    def tick(self, now: float) -> None:
        self.store.expire(now)
        for generation in list(self.generations):
            try:
                generation.tick(now)
            except Exception as exc:
                generation.give_up(as_serving_error(exc))

    def close(self) -> None:
        """Nobody is there, or will come, for what is still on its way."""
        for generation in list(self.generations):
            generation.lost()
