"""A place in a source that is read character by character."""

from abc import ABC, abstractmethod

from chatfleet.core.errors import InvalidRequest


class Cursor(ABC):
    """What parsers of sources have in common: they say in their own words where something is wrong."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._place = 0

    @abstractmethod
    def _wrong(self, what: str) -> InvalidRequest: ...

    def _peek(self) -> str:
        return self._source[self._place : self._place + 1]

    def _take(self, expected: str) -> bool:
        if self._source.startswith(expected, self._place):
            self._place += len(expected)
            return True
        return False

    def _next(self) -> str:
        char = self._peek()
        if not char:
            raise self._wrong("it ends too early")
        self._place += 1
        return char
