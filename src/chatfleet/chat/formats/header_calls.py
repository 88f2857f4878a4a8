"""Calls whose arguments are JSON behind a header that has the name: DeepSeek, Kimi K2, Mistral."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from chatfleet.chat.formats.reader import Reader, json_value
from chatfleet.chat.formats.source import SPACE, Steps


@dataclass(frozen=True, slots=True)
class Header:
    """How one call is written: `begin`, the header, `separator`, the arguments, and what of `closes` there is. Calls
    stand one behind the other, inside `section` where there is one. `name` finds the name in the header."""

    begin: str
    separator: str
    closes: tuple[str, ...] = ()
    section: tuple[str, str] = ("", "")
    name: Callable[[str], str] = str


_NO_NAME = re.compile(r"[\s<>\[\]|]")


def header_calls(reader: Reader, header: Header) -> Steps[None]:
    """Read calls from the section's beginning or the first call's on."""
    source = reader.source
    opened, closed = header.section
    if opened:
        yield from source.accept(opened)
    called = False
    while True:
        yield from source.skip()
        if not (yield from source.accept(header.begin)) or not (yield from header_call(reader, header)):
            break
        called = True
    if called and closed and (yield from source.accept(closed)):
        reader.end()


def header_call(reader: Reader, header: Header) -> Steps[bool]:
    """Read one call from behind its `begin` on. Returns whether it was one."""
    source = reader.source
    yield from source.skip()
    words: list[str] = []
    stop = yield from source.until((header.separator, "{", *header.closes, *SPACE), words.append)
    name = header.name("".join(words))
    if stop is None or not name or _NO_NAME.search(name):
        return False
    yield from source.skip()
    if not (yield from source.accept(header.separator)) and (yield from source.peek()) != "{":
        return False
    reader.begin(name)
    yield from source.skip()
    first = yield from source.peek()
    if first == "{":
        yield from json_value(source, reader.arguments)
    elif first:
        reader.arguments("{}")
    for tag in header.closes:
        yield from source.skip()
        if (yield from source.accept(tag)):
            reader.end()
    reader.output.separate()
    return True
