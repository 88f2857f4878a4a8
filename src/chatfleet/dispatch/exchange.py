"""One request at one worker."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from chatfleet.core.errors import ServingError, WorkerBrokeOff, WorkerFailed, WorkerUnreachable
from chatfleet.core.fleet import LOAD_HEADER, read_load
from chatfleet.dispatch.connection import Headers, WorkerConnection
from chatfleet.dispatch.events import BROKE_OFF, EventSplitter
from chatfleet.dispatch.refusals import refusal
from chatfleet.dispatch.upstream import Upstream
from chatfleet.dispatch.view import Worker

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
_EVENT_STREAM: Final = b"text/event-stream"
_JSON: Final = b"application/json"
_LOAD_HEADER: Final = LOAD_HEADER.encode()
_BROKEN: Final = frozenset({500, 502, 504})
"""The statuses of a worker that is not well. With 503 it says that it will be."""

_PROOF_S: Final = 1.0
_IGNORED_HEADER: Final = b"x-chatfleet-ignored"


class Asker(Protocol):
    """Who waits for the answer: either `events` some times and `ended`, or `whole`; or `failed` instead or midway."""

    def events(self, data: bytes) -> None:
        """Whole server-sent events, as they come."""

    def ended(self) -> None:
        """The events are complete."""

    def whole(self, body: bytes) -> None:
        """The whole answer, which is JSON."""

    def failed(self, error: ServingError) -> None:
        """WorkerUnreachable where no connection could be made, WorkerFailed when it broke off or spoke nonsense, else
        its own refusal."""


class Exchange:
    """Holds a slot of the worker, and from `send` on a connection to it, until the asker is told the outcome or has
    abandoned it.

    `ignored` are the fields that the worker says it has ignored, as it says it, once an answer has begun.
    """

    ignored = ""
    _connection: WorkerConnection | None = None
    _opening: asyncio.Task[None] | None = None
    _request: Sequence[bytes] = ()
    _is_open = True
    _is_paused = False
    _splitter: EventSplitter | None = None
    _refused: tuple[int, Headers] | None = None
    _body = b""
    _parts: list[bytes] | None = None
    _size = 0
    _proving_since = 0.0

    def __init__(self, upstream: Upstream, worker: Worker, asker: Asker) -> None:
        self._upstream = upstream
        self.worker = worker
        self._asker = asker
        worker.begin(self)

    def send(self, request: Sequence[bytes]) -> None:
        """A whole request, in pieces. The asker is told what comes of it, at the earliest after this has returned."""
        self._request = request
        connection = self._upstream.pool(self.worker.info.url).idle()
        if connection is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
        else:
            self._use(connection)

    async def _open(self, *, may_have_died: bool = False) -> None:
        """`may_have_died` of this very request: an old connection ended with it, so that a worker which cannot be
        reached now has not just never seen it."""
        try:
            self._use(await self._upstream.pool(self.worker.info.url).connect())
        except WorkerUnreachable as exc:
            if may_have_died:
                error = WorkerBrokeOff(BROKE_OFF)
                error.__cause__ = exc
                self.answer_failed(error)
            else:
                self.answer_failed(exc)
        except Exception as exc:
            logger.exception("sending a request to the worker %s failed", self.worker.info.worker_id)
            self._fail(str(exc) or type(exc).__name__)

    def _use(self, connection: WorkerConnection) -> None:
        self._connection = connection
        if self._is_paused:
            connection.pause()
        connection.send(self._request, self)

    def pause(self) -> None:
        """Let the worker wait."""
        self._is_paused = True
        if self._is_open and self._connection is not None:  # else it may be another's by now
            self._connection.pause()

    def resume(self) -> None:
        self._is_paused = False
        if self._is_open and self._connection is not None:
            self._connection.resume()

    def abandon(self) -> None:
        """Give back the slot and cut the connection, so that the worker stops working on it. Idempotent; the asker is
        told nothing more."""
        if self._is_open:
            self._close()
            if self._opening is not None:
                self._opening.cancel()
            if self._connection is not None:
                self._connection.abandon()

    def _close(self, *, is_well: bool = False) -> None:
        """`is_well` where the answer is whole: a good head is no success, a worker may break off behind every one."""
        if is_well and self.worker.has_failures:
            self.worker.succeeded()
        self._is_open = False
        self.worker.end(self)

    def worker_lost(self) -> None:
        if not self._is_open:
            return
        self.abandon()
        self._asker.failed(WorkerBrokeOff("The model's worker is gone. Try again."))

    def give_up(self, error: WorkerFailed) -> None:
        """The asker does not want to wait longer: `abandon`, and it is told this error."""
        self.abandon()
        self._told_failed(error)
        self._asker.failed(error)

    # What the connection tells

    def went_stale(self) -> None:
        self._connection = None
        self._opening = asyncio.get_running_loop().create_task(self._open(may_have_died=True))

    def answer_began(self, status: int, headers: Headers) -> None:
        if load := headers.get(_LOAD_HEADER):
            choices = read_load(load)
            if choices is not None:
                self.worker.report(choices, time.monotonic())
        if ignored := headers.get(_IGNORED_HEADER):
            self.ignored = ignored.decode("latin-1")
        coding = headers.get(b"content-encoding")
        if coding is not None and coding.strip().lower() != b"identity":
            self._fail("The model's worker sent a compressed answer, which nobody asked for.")
        elif status != 200:
            self._refused = status, headers
        else:
            media_type = headers.get(b"content-type", b"")
            if media_type == _JSON:
                return
            media_type = media_type.partition(b";")[0].strip().lower()
            if media_type == _EVENT_STREAM:
                self._splitter = EventSplitter()
            elif media_type != _JSON:
                self._fail("The model's worker did not answer as OpenAI's API does.")

    def answer_data(self, data: bytes) -> None:
        if self._splitter is not None:
            try:
                events = self._splitter.feed(data)
            except WorkerFailed as exc:
                self._fail(exc)
                return
            if events:
                if self.worker.has_failures:
                    self._prove()
                self._asker.events(events)
            return
        if not self._body:
            self._body = data
        elif self._parts is None:
            self._parts = [self._body, data]
        else:
            self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            self._fail(f"The worker's answer is larger than {MAX_ANSWER_BYTES // 2**20} MB.")

    def answer_ended(self, *, is_framed: bool) -> None:
        if self._splitter is not None:
            try:
                rest = self._splitter.finish(is_framed=is_framed)
            except WorkerFailed as exc:
                self._fail(exc)
                return
            self._close(is_well=True)
            if rest:
                self._asker.events(rest)
            self._asker.ended()
            return
        body = self._body if self._parts is None else b"".join(self._parts)
        if self._refused is not None:
            if self._refused[0] < 500:
                self._close(is_well=True)
            else:
                if self._refused[0] in _BROKEN:
                    self.worker.failed(time.monotonic())
                self._close()
            self._asker.failed(refusal(self.worker.info, self._refused[0], body, self._refused[1]))
        elif is_framed or _is_json(body):
            self._close(is_well=True)
            self._asker.whole(body)
        else:
            self._fail(WorkerBrokeOff(BROKE_OFF))

    def _prove(self) -> None:
        """A worker that has failed is well again when it streams for a while: the end of a stream may be far."""
        now = time.monotonic()
        if not self._proving_since:
            self._proving_since = now
        elif now - self._proving_since > _PROOF_S:
            self.worker.succeeded()

    def answer_failed(self, error: WorkerFailed) -> None:
        self._told_failed(error)
        self._close()
        self._asker.failed(error)

    def _told_failed(self, error: WorkerFailed) -> None:
        info = self.worker.info
        logger.warning("the worker %s at %s failed a request: %s", info.worker_id, info.url, error.__cause__ or error)
        self.worker.failed(time.monotonic(), unreachable=isinstance(error, WorkerUnreachable))

    def _fail(self, problem: str | WorkerFailed) -> None:
        if self._connection is not None:
            self._connection.abandon()
        self.answer_failed(WorkerFailed(problem) if isinstance(problem, str) else problem)


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
