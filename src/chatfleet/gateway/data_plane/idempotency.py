"""The answers to requests with an Idempotency-Key, kept for those that repeat them. Pure: no clock and no sockets,
times are monotonic seconds that are given.

An answer is kept for KEPT_S from its end. One that has to go before leaves its place taken until then, so that a repeat
is refused rather than generated a second time. Keys and bodies are kept as digests only.

Source of the header and of the statuses: IETF draft-ietf-httpapi-idempotency-key-header.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Protocol

from chatfleet.core.errors import (
    IdempotencyKeyReused,
    IdempotentAnswerGone,
    InvalidRequest,
    ServingError,
    TooManyRequests,
)

IDEMPOTENCY_KEY: Final = b"idempotency-key"
KEPT_S: Final = 600.0
MAX_ANSWERS: Final = 100_000
"""Running, kept, and gone."""

MAX_BACKLOG_BYTES: Final = 256 * 1024
"""Of an answer that is not kept, what may wait for its slowest reader."""

_MAX_SHARE: Final = 0.5
"""Of the room, for one answer: it must not drive out all others."""

_ANSWER_BYTES: Final = 1024
"""What an answer takes beside its bytes, a little more than measured."""

_DIGEST_BYTES: Final = 16
_PIECE_BYTES: Final = 64 * 1024
_KEY: Final = re.compile(rb"[\x20-\x7e]{1,255}")
_EVENT_END: Final = b"\n\n"


def scope_of(key: bytes, authorization: bytes | None, path: str) -> bytes:
    """The digest of what a key holds for: an API key and a path. Raises InvalidRequest."""
    if not _KEY.fullmatch(key):
        raise InvalidRequest(
            "The Idempotency-Key must be 1 to 255 printable ASCII characters. Use a new UUID for each request, and the "
            "same one to send that request again."
        )
    scheme, _, credentials = (authorization or b"").partition(b" ")
    caller = credentials.strip() if scheme.lower() == b"bearer" else authorization or b""
    scope = blake2b(digest_size=_DIGEST_BYTES)
    for part in (caller, path.encode(), key):
        scope.update(b"%d:%b" % (len(part), part))
    return scope.digest()


def digest_of(body: bytes) -> bytes:
    """By which another body is told."""
    return blake2b(body, digest_size=_DIGEST_BYTES).digest()


class Reader(Protocol):
    """Who gets an answer, from its start."""

    offset: int
    """How many bytes of its events it has got."""

    def advance(self) -> None:
        """There is more of the answer, or its end, or the error that there is instead."""

    def comment(self, data: bytes) -> None:
        """A sign of life, which is no part of the answer."""


class Writer(Protocol):
    """Who gives an answer."""

    def pause(self) -> None:
        """Its readers are behind."""

    def resume(self) -> None: ...

    def unread(self) -> None:
        """Nobody will ever read it."""


class Answer:
    """An answer as it comes: a whole body, or events and their end, or an error instead of both.

    `is_kept` says that those who come later get it, too; it may become false. Then only what its readers have not got
    is held, and the writer waits for them.
    """

    __slots__ = (
        "_base",
        "_events",
        "_is_pausing",
        "_store",
        "body_digest",
        "cost",
        "error",
        "has_begun",
        "has_ended",
        "ignored",
        "is_kept",
        "readers",
        "scope",
        "whole",
        "writer",
    )

    def __init__(self, store: "IdempotencyStore", scope: bytes, body_digest: bytes) -> None:
        self._store = store
        self._events = bytearray()
        self._base = 0  # how many bytes were there before these
        self._is_pausing = False
        self.scope = scope
        self.body_digest = body_digest
        self.cost = 0
        self.is_kept = True
        self.readers: dict[Reader, None] = {}
        self.writer: Writer | None = None
        self.ignored: Sequence[str] = ()
        self.whole: bytes | None = None
        self.error: ServingError | None = None
        self.has_begun = self.has_ended = False
        """Of its events."""

    # The writer's

    def begin(self, ignored: Sequence[str]) -> None:
        """Events will come. `ignored` are the names of fields that nobody heeded."""
        self.ignored = ignored
        self.has_begun = True
        self._tell()

    def add(self, events: bytes) -> None:
        """Whole events."""
        self._store.grow(self, len(events))
        self._events += events
        self._tell()

    def comment(self, data: bytes) -> None:
        for reader in list(self.readers):
            if reader.offset == self.size:
                reader.comment(data)

    def end(self, now: float) -> None:
        """The events are complete."""
        self.has_ended = True
        self._store.ended(self, now)
        self._tell()

    def give_whole(self, body: bytes, ignored: Sequence[str], now: float) -> None:
        self.ignored = ignored
        self.whole = body
        self._store.grow(self, len(body))
        self._store.ended(self, now)
        self._tell()
        if not self.is_kept:
            self.whole = b""

    def fail(self, error: ServingError) -> None:
        """Tell this to all who wait, and forget the request: its next repeat is a new one. Nothing of an answer may
        have come."""
        assert not self.size
        self.error = error
        self._store.forget(self)
        self._tell()

    def abandon(self, now: float) -> None:
        """Its end will not come, and nobody reads it."""
        self.has_ended = True
        self._store.stop_keeping(self)
        self._store.ended(self, now)

    @property
    def is_over(self) -> bool:
        return self.has_ended or self.whole is not None or self.error is not None

    # The readers'

    @property
    def size(self) -> int:
        """Bytes of events so far."""
        return self._base + len(self._events)

    def join(self, reader: Reader) -> None:
        """Have a reader told, until it leaves."""
        self.readers[reader] = None

    def leave(self, reader: Reader) -> None:
        """Idempotent."""
        self.readers.pop(reader, None)
        self.drop_read()

    def read(self, offset: int) -> bytes:
        """The next events from an offset on, not too many at a time; empty where none have come."""
        start, end = offset - self._base, len(self._events)
        if end - start > _PIECE_BYTES:
            end = self._events.rfind(_EVENT_END, start, start + _PIECE_BYTES) + 2
            if end == 1:
                end = self._events.index(_EVENT_END, start) + 2
        return bytes(memoryview(self._events)[start:end])

    def drop_read(self) -> None:
        """Of an answer that is not kept, let go of what all readers have got, and have the writer wait for them if they
        are far behind."""
        if self.is_kept:
            return
        read = min((reader.offset for reader in self.readers), default=self.size) - self._base
        del self._events[:read]
        self._base += read
        if self.writer is not None and not self.is_over:
            if not self.readers:
                self.writer.unread()
            elif not self._is_pausing and len(self._events) > MAX_BACKLOG_BYTES:
                self._is_pausing = True
                self.writer.pause()
            elif self._is_pausing and len(self._events) < MAX_BACKLOG_BYTES // 2:
                self._is_pausing = False
                self.writer.resume()

    def _tell(self) -> None:
        for reader in list(self.readers):
            reader.advance()
        self.drop_read()


class IdempotencyStore:
    """All answers of a process, in at most `max_bytes`, not counting what readers have yet to get of those that are not
    kept."""

    def __init__(self, max_bytes: int, *, max_answers: int = MAX_ANSWERS) -> None:
        self.max_bytes = max_bytes
        self.kept_bytes = 0
        self._max_answers = max_answers
        self._running: dict[bytes, Answer] = {}
        self._kept: dict[bytes, Answer] = {}  # the oldest first
        self._gone: dict[bytes, bytes] = {}  # the digest of the body
        self._until: dict[bytes, float] = {}  # of those that are kept or gone, the oldest first

    def __len__(self) -> int:
        return len(self._running) + len(self._until)

    def open(self, scope: bytes, body_digest: bytes, now: float) -> tuple[Answer, bool]:
        """The answer to a request, and whether it is a new one, for the caller to have generated.

        Raises IdempotencyKeyReused, IdempotentAnswerGone, TooManyRequests.
        """
        self.expire(now)
        answer = self._running.get(scope) or self._kept.get(scope)
        known = self._gone.get(scope) if answer is None else answer.body_digest
        if known is not None and known != body_digest:
            raise IdempotencyKeyReused(
                "This Idempotency-Key was used for a request with another body. Use a new key for a new request, and "
                "the same one only to send the very same request again."
            )
        if known is not None and (answer is None or not answer.is_kept):
            raise IdempotentAnswerGone(
                "This request was sent before, and its answer is not kept: it was too large, or others needed the room "
                "(--idempotency-buffer-mb). It is not generated a second time. Use a new Idempotency-Key to ask anew."
            )
        if answer is not None:
            return answer, False
        if len(self) >= self._max_answers:
            first = next(iter(self._until.values()), now)
            raise TooManyRequests(
                f"This gateway remembers {len(self)} requests with an Idempotency-Key and takes no more of them. Try "
                "again later, or without one.",
                retry_after_ms=max(1000, int((first - now) * 1000)),
            )
        answer = self._running[scope] = Answer(self, scope, body_digest)
        self.grow(answer, _ANSWER_BYTES)
        return answer, True

    def expire(self, now: float) -> None:
        """Forget what has ended KEPT_S ago."""
        while self._until:
            scope, until = next(iter(self._until.items()))
            if until > now:
                return
            del self._until[scope]
            self._gone.pop(scope, None)
            if (answer := self._kept.pop(scope, None)) is not None:
                self.stop_keeping(answer)

    # The answers'

    def grow(self, answer: Answer, size: int) -> None:
        """Make room for more of an answer. It is not kept any more if there is none."""
        if not answer.is_kept:
            return
        if answer.cost + size > self.max_bytes * _MAX_SHARE:
            self.stop_keeping(answer)
            return
        while self.kept_bytes + size > self.max_bytes:
            oldest = next((kept for kept in self._kept.values() if not kept.readers), None)
            if oldest is None:
                self.stop_keeping(answer)
                return
            del self._kept[oldest.scope]
            self._gone[oldest.scope] = oldest.body_digest
            self.stop_keeping(oldest)
        answer.cost += size
        self.kept_bytes += size

    def ended(self, answer: Answer, now: float) -> None:
        del self._running[answer.scope]
        if answer.is_kept:
            self._kept[answer.scope] = answer
        else:
            self._gone[answer.scope] = answer.body_digest
        self._until[answer.scope] = now + KEPT_S

    def forget(self, answer: Answer) -> None:
        del self._running[answer.scope]
        self.stop_keeping(answer)

    def stop_keeping(self, answer: Answer) -> None:
        self.kept_bytes -= answer.cost
        answer.cost = 0
        answer.is_kept = False
