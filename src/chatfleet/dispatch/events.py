"""Whole server-sent events out of a stream that comes in any pieces."""

import re
from typing import Final

from chatfleet.core.errors import WorkerFailed

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment, which clients ignore (WHATWG HTML, "Server-sent events")."""

_DONE: Final = b"data: [DONE]\n\n"
_LINE_END = re.compile(rb"\r\n|\r")


class EventSplitter:
    """Takes bytes, gives whole events; what is unfinished waits, up to MAX_EVENT_BYTES.

    Line ends become "\\n", so that every event ends with "\\n\\n" whatever the worker wrote.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._is_done = False

    def feed(self, data: bytes) -> bytes:
        """All events that `data` completes, empty if none. Raises WorkerFailed when one is too large."""
        if self._tail:
            data = self._tail + data
        if b"\r" in data:
            held = b"\r" if data.endswith(b"\r") else b""  # the other half of a line end may follow
            data = _LINE_END.sub(b"\n", data.removesuffix(held)) + held if held else _LINE_END.sub(b"\n", data)
        if data.endswith(b"\n\n"):
            self._tail = b""
            self._is_done = data.endswith(_DONE)
            return data
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            end = 0
        self._tail = data[end:]
        if len(self._tail) > MAX_EVENT_BYTES:
            raise WorkerFailed(f"The worker sent an event of more than {MAX_EVENT_BYTES // 2**20} MB.")
        if end:
            self._is_done = data.endswith(_DONE, 0, end)
        return data[:end]

    def finish(self, *, is_framed: bool) -> bytes:
        """What is left when the worker has ended its answer: nothing, or a last event without its blank line.

        Raises WorkerFailed when it ended inside another event, and when it never said that it was done although,
        not being framed, its answer may have ended by its death.
        """
        tail, self._tail = _LINE_END.sub(b"\n", self._tail).strip(b"\n"), b""
        if tail == _DONE.rstrip(b"\n"):
            return _DONE
        if tail or not (is_framed or self._is_done):
            raise WorkerFailed("The model's worker broke off before its answer was complete. Try again.")
        return b""
