"""Whole server-sent events out of a stream that comes in any pieces."""

import re
from typing import Final

from chatfleet.core.errors import WorkerBrokeOff, WorkerFailed

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment, which clients ignore (WHATWG HTML, "Server-sent events")."""

BROKE_OFF: Final = "The model's worker broke off before its answer was complete. Try again."

_DONE: Final = b"data: [DONE]\n\n"
_LINE_END = re.compile(rb"\r\n|\r")


class EventSplitter:
    """Takes bytes, gives whole events; what is unfinished waits, up to MAX_EVENT_BYTES.

    Line ends become "\\n", so that every event ends with "\\n\\n" whatever the worker wrote.
    """

    def __init__(self) -> None:
        self._tail = bytearray()
        self._is_done = False

    def feed(self, data: bytes) -> bytes:
        """All events that `data` completes, empty if none. Raises WorkerFailed when one is too large."""
        tail = self._tail
        if not tail and data.endswith(b"\n\n") and b"\r" not in data:
            self._is_done = data.endswith(_DONE)
            return data
        if tail.endswith(b"\r"):  # the other half of a line end may have followed
            del tail[-1:]
            data = b"\r" + data
        if b"\r" in data:
            held = b"\r" if data.endswith(b"\r") else b""
            data = _LINE_END.sub(b"\n", data.removesuffix(held)) + held
        searched = max(0, len(tail) - 1)
        tail += data
        end = tail.rfind(b"\n\n", searched) + 2
        if end == 1:
            if len(tail) > MAX_EVENT_BYTES:
                raise WorkerFailed(f"The worker sent an event of more than {MAX_EVENT_BYTES // 2**20} MB.")
            return b""
        events = bytes(tail[:end])
        del tail[:end]
        self._is_done = events.endswith(_DONE)
        return events

    def finish(self, *, is_framed: bool) -> bytes:
        """What is left when the worker has ended its answer: nothing, or a last event without its blank line.

        Raises WorkerFailed when it ended inside another event, and when it never said that it was done although,
        not being framed, its answer may have ended by its death.
        """
        tail = _LINE_END.sub(b"\n", bytes(self._tail)).strip(b"\n")
        self._tail.clear()
        if tail == _DONE.rstrip(b"\n"):
            return _DONE
        if tail or not (is_framed or self._is_done):
            raise WorkerBrokeOff(BROKE_OFF)
        return b""
