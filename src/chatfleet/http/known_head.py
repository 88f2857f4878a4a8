"""Messages with the head of the one before, as most have on a connection: no parser needs to look at it again."""

import re
from typing import Final, Self

MAX_MISSES: Final = 16
"""So many heads in a row that were not the one before, and a connection's heads had better just be parsed."""

_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(?=[0-9]{1,7}\r\n)")
_END: Final = b"\r\n\r\n"


class KnownHead:
    """A head that has been parsed and found right, but for the digits of its content-length.

    A message that came whole, in one piece, is recognised by its bytes, in half a microsecond. That leaves a parser
    where it was, between two messages.
    """

    __slots__ = ("_after", "_before", "_start")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after
        self._start = len(before)

    @classmethod
    def of(cls, message: bytes) -> Self | None:
        """The head of a message that has been parsed, if it is just this one, whole, and its body has a length."""
        end = message.find(_END) + len(_END)
        found = _LENGTH.search(message, 0, end)
        if found is None:
            return None
        start = found.end()
        digits_end = message.index(b"\r", start)
        known = cls(message[:start], message[digits_end:end])
        return known if known.body_of(message) is not None else None

    def body_of(self, data: bytes) -> bytes | None:
        """The body, if `data` is one whole message with this head."""
        if not data.startswith(self._before):
            return None
        end = data.find(b"\r", self._start)
        digits = data[self._start : end]
        if not data.startswith(self._after, end) or not digits.isdigit() or len(digits) > 7:
            return None
        body = data[end + len(self._after) :]
        return body if len(body) == int(digits) else None
