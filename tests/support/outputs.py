"""Outputs of models as the tests of parsers see them."""

from collections.abc import Iterable
from typing import Any

from chatfleet.chat.events import CallArguments, CallBegin, Content, OutputEvent, OutputParser, Reasoning


def parse(parser: OutputParser, pieces: Iterable[str]) -> list[OutputEvent]:
    """All events of a text that comes in pieces."""
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.finish()


def merged(events: Iterable[OutputEvent]) -> list[dict[str, Any]]:
    """Events with the fragments of one thing put together: {"content"}, {"reasoning"} or {"call", "arguments"}."""
    whole: list[dict[str, Any]] = []
    for event in events:
        match event:
            case CallBegin(index, name):
                assert index == sum("call" in other for other in whole)
                whole.append({"call": name, "arguments": ""})
            case CallArguments(index, fragment):
                assert index == sum("call" in other for other in whole) - 1
                whole[-1]["arguments"] += fragment
            case Content(text) | Reasoning(text):
                kind = "content" if isinstance(event, Content) else "reasoning"
                if not whole or kind not in whole[-1]:
                    whole.append({kind: ""})
                whole[-1][kind] += text
    return whole
