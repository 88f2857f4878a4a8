"""gpt-oss's format, harmony: messages with a channel, and a recipient where they are calls.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>commentary to=functions.f
    <|constrain|>json<|message|>{...}<|call|>

Source: OpenAI's description of the harmony response format.
"""

import re

from chatfleet.chat.events import Content, Reasoning
from chatfleet.chat.formats.reader import Reader, json_value
from chatfleet.chat.formats.source import SPACE, Sink, Steps

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, RETURN, CALL = "<|end|>", "<|return|>", "<|call|>"
VISIBLE = (START, CHANNEL, MESSAGE, CONSTRAIN, END, RETURN, CALL)

_ENDS = (END, RETURN, CALL)
_BEFORE_RECIPIENT = f">{SPACE}"
RECIPIENTS = tuple(f"{before}to=" for before in _BEFORE_RECIPIENT)
"""Every call has one of these: a recipient stands apart from what is before it."""
_RECIPIENT = re.compile(rf"[{_BEFORE_RECIPIENT}]to=([^\s<]+)")
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")


def read_harmony(reader: Reader, *, opened: bool, calls: bool) -> Steps[None]:
    """Read messages to the end of the text. `opened`: the prompt ends with the header of a message that is reasoning.
    Without `calls`, what is addressed to a function is text like any other."""
    source, output = reader.source, reader.output
    if opened:
        yield from _text(reader, output.reasoning)
    while (yield from source.peek()):
        source.record()
        if (yield from _at_header(reader)) and (yield from _header(reader)):
            yield from _message(reader, source.recorded(), calls=calls)
        else:
            output.content(source.recorded())
            yield from _text(reader, output.content)


def _at_header(reader: Reader) -> Steps[bool]:
    """Whether a header follows. The prompt has its first words already: `<|start|>assistant`."""
    source = reader.source
    spaced = (yield from source.peek()) in SPACE
    yield from source.skip()
    for begin in (CHANNEL, START, "to=") if spaced else (CHANNEL, START):
        if (yield from source.accept(begin)):
            return True
    return False


def _header(reader: Reader) -> Steps[bool]:
    """Read a header to its end. Returns whether it has one."""
    source = reader.source
    if (yield from source.until((MESSAGE, *_ENDS), lambda _: None)) != MESSAGE:
        return False
    return (yield from source.accept(MESSAGE))


def _message(reader: Reader, header: str, *, calls: bool) -> Steps[None]:
    output = reader.output
    recipient = _RECIPIENT.search(header)
    name = recipient[1] if recipient else ""
    channel = _CHANNEL.search(header)
    if calls and name and (name.startswith("functions.") or name in reader.functions):
        yield from _call(reader, name.removeprefix("functions."))
    else:
        analysis = channel is not None and channel[1] == "analysis"
        output.paragraph(Reasoning if analysis else Content)
        yield from _text(reader, output.reasoning if analysis else output.content)


def _call(reader: Reader, name: str) -> Steps[None]:
    source = reader.source
    reader.output.begin(name)
    yield from source.skip()
    first = yield from source.peek()
    if first == "{":
        yield from json_value(source, reader.arguments)
    elif first == "<":
        reader.arguments("{}")
    else:
        yield from source.until((*_ENDS, START), reader.arguments)
    yield from _text(reader, reader.output.content)


def _text(reader: Reader, sink: Sink) -> Steps[None]:
    """Read to the end of a message, or to where the next one begins without one."""
    source = reader.source
    tag = yield from source.until((*_ENDS, START, CHANNEL), sink)
    if tag in _ENDS:
        yield from source.accept(tag)
        reader.output.separate()
        yield from source.skip(SPACE)
