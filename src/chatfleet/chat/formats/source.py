"""Text that grows, and steps that read it.

A reader of a format is a generator: it yields when it needs more text than there is, and goes on where it was when
more has come. So it is written as if the whole text were there, and cannot depend on how the text was split.
"""

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Yields where it needs more text; returns its result."""

Sink = Callable[[str], object]

SPACE = " \t\r\n"


class Source:
    """What has come of a text and has not been read.

    While it records, all that is read is kept until `commit`: where it turns out to be no call, it is text again.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._record: list[str] | None = None

    def add(self, text: str) -> None:
        self.text = self.text[self.at :] + text
        self.at = 0

    def record(self) -> None:
        self._record = []

    def commit(self) -> None:
        """What was recorded had a meaning: forget it."""
        if self._record is not None:
            self._record = []

    def recorded(self) -> str:
        """What was read since the last commit. Ends the recording."""
        text = "".join(self._record or ())
        self._record = None
        return text

    def take(self, chars: int) -> str:
        """Read so many characters, which must be there."""
        piece = self.text[self.at : self.at + chars]
        self.at += len(piece)
        if self._record is not None:
            self._record.append(piece)
        return piece

    def peek(self) -> Steps[str]:
        """The next character; "" at the end of the text."""
        while self.at == len(self.text) and not self.ended:
            yield
        return self.text[self.at : self.at + 1]

    def accept(self, expected: str) -> Steps[bool]:
        """Read `expected` if that is what comes next."""
        while not self.ended and len(self.text) - self.at < len(expected):
            if not expected.startswith(self.text[self.at :]):
                return False
            yield
        if not self.text.startswith(expected, self.at):
            return False
        self.take(len(expected))
        return True

    def skip(self, chars: str = SPACE) -> Steps[None]:
        """Read whatever there is of these characters."""
        while (yield from self.peek()) and self.text[self.at] in chars:
            end = self.at
            while end < len(self.text) and self.text[end] in chars:
                end += 1
            self.take(end - self.at)

    def word(self, pattern: re.Pattern[str]) -> Steps[str]:
        """Read characters as long as `pattern`, a class of characters, matches them."""
        pieces: list[str] = []
        while (yield from self.peek()) and (found := pattern.match(self.text, self.at)):
            pieces.append(self.take(found.end() - self.at))
        return "".join(pieces)

    def until(self, tags: tuple[str, ...], sink: Sink) -> Steps[str | None]:
        """Read up to the first of `tags`, which stays, and give what was read to `sink` as soon as it can be no
        part of a tag. Returns the tag, or None at the end of the text. No tag may begin with another."""
        whole, begun, longest = _patterns(tags)
        while True:
            found = whole.search(self.text, self.at)
            if found is not None:
                self._give(found.start(), sink)
                return found.group()
            if self.ended:
                self._give(len(self.text), sink)
                return None
            held = begun.search(self.text, max(self.at, len(self.text) - longest + 1))
            self._give(held.start() if held else len(self.text), sink)
            yield

    def _give(self, end: int, sink: Sink) -> None:
        if end > self.at:
            sink(self.take(end - self.at))


_NEVER = re.compile(r"(?!)")


@lru_cache(maxsize=256)
def _patterns(tags: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str], int]:
    """What finds a tag, what finds the beginning of one at the end of the text, and the longest tag's length."""
    if not tags:
        return _NEVER, _NEVER, 1
    begun = sorted({tag[:length] for tag in tags for length in range(1, len(tag))}, key=len, reverse=True)
    return (
        re.compile("|".join(map(re.escape, tags))),
        re.compile(f"(?:{'|'.join(map(re.escape, begun))})\\Z") if begun else _NEVER,
        max(map(len, tags)),
    )
