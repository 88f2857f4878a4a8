"""What a client has got of a stream, kept for when its worker dies."""

import re
from typing import Final

import msgspec

from chatfleet.protocol.resume import PendingLogprob, Resume, ResumeBody, ResumedChoice

DONE: Final = b"data: [DONE]\n\n"
_IDS: Final = re.compile(rb"^:r [^\n]*\n", re.MULTILINE)
_CHOICE: Final = re.compile(rb":r (\d{1,4})((?:,\d{1,10})*)(?: (stop|length))?(?: (\[.*\]))?")
_START: Final = re.compile(rb":r ([A-Za-z0-9_-]{1,128}) (\d{1,20})")
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"')
_PENDING: Final = msgspec.json.Decoder(list[PendingLogprob])
_USAGE_LINE: Final = b":r usage\n"
_NOT_AS_AGREED: Final = "the worker did not tell its tokens as agreed"


class CannotGoOn(Exception):
    """No other worker can go on with this stream. The message, for a person, says why."""


class Delivered:
    """The events of a stream of a server that is not ours, up to `max_bytes`: past that only the last ones, and then no
    other worker can go on with it."""

    __slots__ = ("_max_bytes", "_previous", "_size", "is_whole", "latest", "pieces")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._previous = self.latest = b""
        self.pieces: list[bytes] = []
        self.is_whole = True

    def add(self, events: bytes) -> bytes:
        """What of these events is for the client."""
        self._previous = self.latest
        self.latest = events
        if self.is_whole:
            self.pieces.append(events)
            self._size += len(events)
            if self._size > self._max_bytes:
                self.is_whole = False
                self.pieces.clear()
        return events

    def tail(self) -> bytes:
        """The last events: the usage among them, where the client asked for it."""
        return self._previous + self.latest

    def lacks_end_only(self, request: bytes) -> bool:
        """Whether all has come but the very last event, which says so. `request` is the request's body."""
        is_one = b'"include_usage"' not in request and b'"n"' not in request
        return is_one and not self.is_done and _FINISH.search(self.latest) is not None

    @property
    def is_done(self) -> bool:
        """Whether nothing is missing any more."""
        return self.latest.endswith(DONE)


class DeliveredIds(Delivered):
    """Of a stream of our own worker, only the ids of its tokens are kept, which it tells in comments (see
    core/fleet.py, RECOVERY_HEADER). The client does not get to see them."""

    __slots__ = ("_lines",)

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._lines = bytearray()  # a list of lines would take five times the memory

    def add(self, events: bytes) -> bytes:
        if events.startswith(b":r ") and b"\n:r " not in events:
            end = events.find(b"\n") + 1
            lines = events[:end]
            events = events[end:]
        elif b":r " in events:
            lines = b"".join(_IDS.findall(events))
            events = _IDS.sub(b"", events)
        else:
            lines = b""
        self._previous = self.latest
        self.latest = events
        if self.is_whole:
            self._lines += lines
            if len(self._lines) > self._max_bytes:
                self.is_whole = False
                self._lines = bytearray()
        return events

    def lacks_end_only(self, request: bytes) -> bool:
        return not self.is_done and self._lines.endswith(_USAGE_LINE)

    def resume_body(self, request: bytes) -> bytes:
        """The body that has another worker of ours go on with the stream. Raises CannotGoOn."""
        return msgspec.json.encode(ResumeBody(self._resume(), msgspec.Raw(request)))

    def _resume(self) -> Resume:
        if not (self.is_whole and self._max_bytes):
            raise CannotGoOn("the answer is longer than what is kept of it (--recovery-buffer-kb)")
        started: tuple[str, int] | None = None
        choices: dict[int, ResumedChoice] = {}
        for line in bytes(self._lines).splitlines():
            if (found := _CHOICE.fullmatch(line)) is not None:
                index = int(found[1])
                choices[index] = _grown(choices.get(index), index, found)
            elif (start := _START.fullmatch(line)) is not None:
                started = start[1].decode(), int(start[2])
            elif line != _USAGE_LINE[:-1]:
                raise CannotGoOn(_NOT_AS_AGREED)
        if started is None:
            raise CannotGoOn("the worker did not tell its tokens, since it is of an older version")
        return Resume(*started, list(choices.values()))


def _grown(before: ResumedChoice | None, index: int, found: "re.Match[bytes]") -> ResumedChoice:
    token_ids = [] if before is None else before.token_ids
    token_ids += map(int, found[2].split(b",")[1:])
    return ResumedChoice(
        index,
        token_ids,
        None if found[3] is None else ("stop" if found[3] == b"stop" else "length"),
        [] if found[4] is None else _pending(found[4]),
    )


def _pending(data: bytes) -> list[PendingLogprob]:
    try:
        return _PENDING.decode(data)
    except msgspec.DecodeError as exc:
        raise CannotGoOn(_NOT_AS_AGREED) from exc
