"""What every format's reader works with, and the reading of JSON that is still being written."""

import json
import re
from collections.abc import Mapping
from typing import Any

from chatfleet.chat.formats.output import Output
from chatfleet.chat.formats.source import SPACE, Sink, Source, Steps

Functions = Mapping[str, Mapping[str, Any] | None]
"""The functions that can be called: name to the JSON schema of its parameters, None where it has none."""


class Reader:
    """A text, the events found in it so far, and the functions that it may call."""

    def __init__(self, functions: Functions) -> None:
        self.source = Source()
        self.output = Output()
        self.functions = functions

    def begin(self, name: str) -> None:
        """A call's name is known: from here on nothing of it becomes text again."""
        self.source.commit()
        self.output.begin(name)

    def arguments(self, fragment: str) -> None:
        self.source.commit()
        self.output.arguments(fragment)

    def end(self) -> None:
        """What was read up to here belongs to a call."""
        self.source.commit()
        self.output.separate()


_RUN = re.compile(r'[^"{}\[\]<,]+')
_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]+')
_SCALAR = re.compile(r"[^\s,\[\]{}<]+")


def json_value(source: Source, sink: Sink) -> Steps[bool]:
    """Read one JSON value and give its text to `sink` as it comes: as it stands, but for control characters inside of
    strings, which are escaped, and a comma behind the last item, which is left out.

    Returns whether its end came. It is found, not checked: brackets are counted and strings are honoured. A "<"
    outside of strings, which no JSON has, ends it too: there the model has gone on without closing what it opened.
    """
    first = yield from source.peek()
    if first == "" or first not in '"{[':
        text = yield from source.word(_SCALAR)
        if text:
            sink(text)
        return bool(text) and bool((yield from source.peek()))
    depth = 0
    while (char := (yield from source.peek())) and char != "<":
        if char == '"':
            if not (yield from _json_string(source, sink)):
                return False
        elif char == ",":
            held = source.take(1) + (yield from source.word(_SPACES))
            following = yield from source.peek()
            if not following or following not in "]}":
                sink(held)
        elif found := _RUN.match(source.text, source.at):
            sink(source.take(found.end() - source.at))
        else:
            depth += 1 if char in "{[" else -1
            sink(source.take(1))
        if not depth:
            return True
    return False


_SPACES = re.compile(rf"[{SPACE}]+")


def _json_string(source: Source, sink: Sink) -> Steps[bool]:
    """Read a string from its quotation mark on. Returns whether its end came."""
    sink(source.take(1))
    while char := (yield from source.peek()):
        if found := _STRING_RUN.match(source.text, source.at):
            sink(source.take(found.end() - source.at))
            continue
        source.take(1)
        if char != "\\":
            sink(char if char == '"' else quoted(char))
            if char == '"':
                return True
            continue
        sink(char)
        if escaped := (yield from source.peek()):
            source.take(1)
            sink(escaped if escaped >= " " else quoted(escaped).removeprefix("\\"))
    return False


def json_string(source: Source) -> Steps[str | None]:
    """Read a JSON string. Returns what it stands for, or None where there is none or it does not end."""
    if (yield from source.peek()) != '"':
        return None
    pieces: list[str] = []
    if not (yield from json_value(source, pieces.append)):
        return None
    return unquoted("".join(pieces))


def unquoted(text: str) -> str | None:
    """What the JSON string `text` stands for; surrogates without their other half, which no text has, as "?"."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return str(value).encode(errors="replace").decode()


def quoted(text: str) -> str:
    """`text` as the inside of a JSON string; pieces of a text can be quoted one by one."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
