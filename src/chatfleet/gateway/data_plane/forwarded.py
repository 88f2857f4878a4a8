"""Requests with an Idempotency-Key, in a process that is not the one which has their answers: they are that one's."""

import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chatfleet.core.errors import IdempotencyUnavailable, ServingError, TotalTimeout, WorkerFailed
from chatfleet.core.fleet import WorkerInfo
from chatfleet.dispatch.connection import Headers
from chatfleet.dispatch.exchange import Exchange
from chatfleet.dispatch.upstream import UNIX, Upstream
from chatfleet.dispatch.view import Worker
from chatfleet.gateway.data_plane.answer import ClientTurn
from chatfleet.gateway.data_plane.heads import HOPS, IDEMPOTENT_REPLAYED, RequestHead
from chatfleet.gateway.data_plane.plane import DataPlane
from chatfleet.http.errors import as_serving_error
from chatfleet.http.protocol import STALLED_S, HttpProtocol

SCOPE: Final = b"x-chatfleet-idempotency-scope"
"""What an Idempotency-Key holds for, as the digest that is all that is kept of it, in hexadecimal."""

STORE_OWNER: Final = b"x-chatfleet-store-owner"
"""Who has what the request stores, as the digest by which stored completions know it."""

_GRACE_S: Final = 10.0
"""Beyond --total-timeout, which the owner looks after."""


class ForwardedRequest(ClientTurn):
    """Takes one request to the owner and the answer back. The owner counts it."""

    _exchange: "_OwnerExchange | None" = None
    _is_admitted = False
    _is_unanswered = False
    _is_replay = False
    _paused_since: float | None = None

    def __init__(self, protocol: HttpProtocol, plane: DataPlane, head: RequestHead, owner: "Owner") -> None:
        super().__init__(protocol, plane, head)
        self._owner = owner

    def proceed(self) -> None:
        try:
            self.plane.crowd.enter(self.started)
            self._is_admitted = True
            self._exchange = exchange = _OwnerExchange(self._owner.upstream, self._owner.process, self)
            exchange.send((self._request_head(), self.body))
        except Exception as exc:
            self.stop()
            self._give_up(as_serving_error(exc))

    def _request_head(self) -> bytes:
        head = self.head
        assert head.scope is not None
        session = b"" if head.session is None else b"%b: %b\r\n" % (self.plane.session_header, head.session)
        return (
            b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"%b: %b\r\n%b: %b\r\n%b: %d\r\n%b%b%b"
            b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n"
        ) % (
            head.endpoint.path.encode(),
            SCOPE,
            head.scope.hex().encode(),
            STORE_OWNER,
            head.owner.hex().encode(),
            HOPS,
            head.hops,
            session,
            head.trace,
            head.priority,
            self.request_id,
            len(self.body),
        )

    # What comes back

    def events(self, data: bytes) -> None:
        self._begin_stream()
        self.send_events(data)

    def ended(self) -> None:
        self._begin_stream()
        self.send_end()
        self.finish(200)

    def _begin_stream(self) -> None:
        if not self.head_is_sent:
            self.send_stream_head(self._ignored())

    def whole(self, body: bytes) -> None:
        self.send_whole(body, self._ignored())
        self.finish(200)

    def failed(self, error: ServingError) -> None:
        if isinstance(error, WorkerFailed):
            self._give_up(
                IdempotencyUnavailable(
                    "The gateway process that answers requests with an Idempotency-Key is gone, and what it was "
                    "answering with it. Its place is taken in a moment: try again.",
                    is_passing=True,
                )
            )
        elif self.head_is_sent:
            self.break_off(error)
        else:
            self.answer_error(error)

    def _give_up(self, error: ServingError) -> None:
        """For a reason that the owner does not know."""
        self._is_unanswered = True
        if self.head_is_sent:
            self.break_off(error)
        else:
            self.answer_error(error)

    def _ignored(self) -> Sequence[str]:
        assert self._exchange is not None
        return [name.strip() for name in self._exchange.ignored.split(",") if name.strip()]

    def _headers(self, ignored: Sequence[str]) -> bytes:
        is_replay = self._exchange is not None and self._exchange.is_replay
        return (IDEMPOTENT_REPLAYED if is_replay else b"") + super()._headers(ignored)

    # What happens meanwhile

    def tick(self, now: float) -> None:
        if self._paused_since is not None:
            if now - self._paused_since > STALLED_S:
                self.protocol.transport.abort()
        elif self._exchange is not None and now - self.started > self.plane.patience.total_s + _GRACE_S:
            self.stop()
            self._give_up(TotalTimeout("The gateway process that answers this request does not end (--total-timeout)."))

    def pause(self) -> None:
        self._paused_since = time.monotonic()
        if self._exchange is not None:
            self._exchange.pause()

    def resume(self) -> None:
        self._paused_since = None
        if self._exchange is not None:
            self._exchange.resume()

    def stop(self) -> None:
        if self._exchange is not None:
            self._exchange.abandon()

    def count(self, status: int, duration_s: float) -> None:
        if self._is_admitted:
            self.plane.crowd.leave(self.started + duration_s)
        if self._exchange is None or self._is_unanswered:
            super().count(status, duration_s)
        self._exchange = None


class _OwnerExchange(Exchange):
    is_replay = False

    def answer_began(self, status: int, headers: Headers) -> None:
        self.is_replay = _REPLAYED in headers
        super().answer_began(status, headers)


_REPLAYED: Final = IDEMPOTENT_REPLAYED.partition(b":")[0]


class Owner:
    """Takes requests with a key to the process that listens at `path`."""

    def __init__(self, path: Path, tls: ssl.SSLContext) -> None:
        self.upstream = Upstream(tls)
        self.process = Worker(
            WorkerInfo.model_construct(worker_id="gateway", url=f"{UNIX}{path}", models=(), kind="chatfleet")
        )

    def turn(self, protocol: HttpProtocol, plane: DataPlane, head: RequestHead) -> ForwardedRequest:
        return ForwardedRequest(protocol, plane, head, self)

    def tick(self, now: float) -> None:
        self.upstream.close_idle()

    def close(self) -> None:
        self.upstream.close_idle(0.0)
