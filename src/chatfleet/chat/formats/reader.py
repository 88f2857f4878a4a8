"""What every format's reader works with, and the reading of JSON that is still being written."""

import json
import re
from collections.abc import Mapping
from typing import Any

from chatfleet.chat.formats.output import Output
from chatfleet.chat.formats.source import Sink, Source, Steps

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


_STRUCTURE = re.compile(r'["{}\[\]<]')
_QUOTED = re.compile(r'["\\]')
_SCALAR = re.compile(r"[^\s,\[\]{}<]+")


def json_value(source: Source, sink: Sink) -> Steps[bool]:
    """Read one JSON value and give its text, as it stands, to `sink` as it comes.

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
    quoted = escaped = complete = broken = False
    while True:
        text, at = source.text, source.at
        while at < len(text) and not complete:
            if escaped:
                escaped, at = False, at + 1
                continue
            found = (_QUOTED if quoted else _STRUCTURE).search(text, at)
            if found is None:
                at = len(text)
                break
            char, at = found.group(), found.end()
            if quoted:
                escaped = char == "\\"
                quoted = escaped
                complete = not quoted and not depth
            elif char == '"':
                quoted = True
            elif char == "<":
                complete = broken = True
                at -= 1
            else:
                depth += 1 if char in "{[" else -1
                complete = not depth
        if at > source.at:
            sink(source.take(at - source.at))
        if complete or source.ended:
            return complete and not broken
        yield


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
