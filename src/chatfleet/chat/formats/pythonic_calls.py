"""Calls written as a list of Python calls, [f(a=1, b="x"), g()]: Llama 4, Llama 3.2 and others."""

import re
from collections.abc import Mapping

from pydantic_core import from_json

from chatfleet.chat.formats.json_calls import json_calls
from chatfleet.chat.formats.reader import Reader, quoted
from chatfleet.chat.formats.source import Source, Steps

_WORD = re.compile(r"[\w.\-]+")
_GAP = re.compile(r"\s+")
_MAX_NESTING = 32
_CLOSERS = frozenset(")]}")
_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_SIMPLE_ESCAPES = frozenset('ntrbf"\\')


def pythonic_calls(reader: Reader, *, close: str = "") -> Steps[bool]:
    """Read `[f(...), ...]`, or calls that are JSON, of functions of the request. Returns whether there was one."""
    source = reader.source
    yield from source.skip()
    if (yield from source.peek()) == "{":
        return (yield from json_calls(reader, known=True, close=close))
    if not (yield from source.accept("[")):
        return False
    yield from source.skip()
    if (yield from source.peek()) == "{":
        return (yield from json_calls(reader, known=True, close=close, listed=True))
    called = False
    while True:
        yield from source.skip()
        name = yield from source.word(_WORD)
        if name not in reader.functions or not (yield from source.accept("(")):
            break
        called = True
        reader.begin(name)
        if not (yield from _arguments(reader, name)):
            return True
        reader.end()
        yield from source.skip()
        if (yield from source.accept(",")):
            continue
        for end in ("]", close):
            if end and (yield from source.accept(end)):
                reader.end()
                yield from source.skip()
        break
    return called


def _arguments(reader: Reader, name: str) -> Steps[bool]:
    """Read arguments up to the bracket behind them. Those without a name are the schema's properties, in order.
    Returns whether the bracket came."""
    source = reader.source
    schema = reader.functions[name]
    properties = schema.get("properties") if schema else None
    names = list(properties) if isinstance(properties, Mapping) else []
    reader.arguments("{")
    count = 0
    while True:
        yield from source.skip()
        if (yield from source.accept(")")):
            reader.arguments("}")
            return True
        word = yield from source.word(_WORD)
        gap = yield from source.word(_GAP)
        if not word and not (yield from source.peek()):
            return False
        named = bool(word) and (yield from source.accept("="))
        key = word if named else names[count] if count < len(names) else f"argument_{count + 1}"
        reader.arguments(f'{", " if count else ""}"{quoted(key)}": ')
        count += 1
        yield from source.skip()
        if not (yield from _literal(reader, "" if named else word + gap, 0)):
            return False
        yield from source.skip()
        if not (yield from source.accept(",")) and (yield from source.peek()) != ")":
            return False


def _literal(reader: Reader, word: str, depth: int) -> Steps[bool]:
    """Read a literal and give it as JSON, the strings in it as they come; what is none becomes a string.

    `word` is what has been read of it. Returns whether it ended.
    """
    source = reader.source
    first = yield from source.peek()
    if not word and first in _STRING:
        return (yield from _string(reader, first))
    if not word and first in ("[", "(", "{") and depth < _MAX_NESTING:
        source.take(1)
        return (yield from _container(reader, first, depth + 1))
    text = (word + (yield from _expression(source))).strip()
    if not (yield from source.peek()):
        if text:
            reader.arguments(_CONSTANTS.get(text) or (text if _is_number(text) else f'"{quoted(text)}'))
        return False
    reader.arguments(_CONSTANTS.get(text) or (text if _is_number(text) else f'"{quoted(text)}"'))
    return True


def _container(reader: Reader, opened: str, depth: int) -> Steps[bool]:
    """Read the items of a list, tuple or dict from behind its bracket on."""
    source = reader.source
    keyed = opened == "{"
    reader.arguments("{" if keyed else "[")
    count = 0
    while True:
        yield from source.skip()
        if (yield from source.peek()) in _CLOSERS:
            source.take(1)
            reader.arguments("}" if keyed else "]")
            return True
        if not (yield from source.peek()):
            return False
        if count:
            reader.arguments(", ")
        count += 1
        if keyed:
            if (yield from source.peek()) in _STRING:
                if not (yield from _string(reader, source.text[source.at])):
                    return False
            else:
                reader.arguments(f'"{quoted((yield from _expression(source)))}"')
            yield from source.skip()
            if not (yield from source.accept(":")):
                return False
            reader.arguments(": ")
            yield from source.skip()
        if not (yield from _literal(reader, "", depth)):
            return False
        yield from source.skip()
        if not (yield from source.accept(",")) and (yield from source.peek()) not in _CLOSERS:
            return False


_STRING = {quote: re.compile(rf"[^{quote}\\]+") for quote in "'\""}


def _string(reader: Reader, quote: str) -> Steps[bool]:
    """Read a string from its quotation mark on."""
    source = reader.source
    source.take(1)
    reader.arguments('"')
    end = quote
    if (yield from source.accept(quote)):
        if not (yield from source.accept(quote)):
            reader.arguments('"')
            return True
        end = quote * 3
    while first := (yield from source.peek()):
        if first == quote:
            if (yield from source.accept(end)):
                reader.arguments('"')
                return True
            reader.arguments(quoted(source.take(1)))
        elif first == "\\":
            source.take(1)
            reader.arguments((yield from _escape(source)))
        elif found := _STRING[quote].match(source.text, source.at):
            reader.arguments(quoted(source.take(found.end() - source.at)))
    return False


_HEX = re.compile(r"[0-9a-fA-F]")
_DIGITS = {"x": 2, "u": 4, "U": 8}


def _escape(source: Source) -> Steps[str]:
    """Read an escape from behind its backslash on, as JSON writes it. What is none is a backslash, as in Python."""
    char = yield from source.peek()
    if not char:
        return ""
    source.take(1)
    if char in _SIMPLE_ESCAPES:
        return f"\\{char}"
    if char in "'\n":
        return "" if char == "\n" else char
    digits = ""
    while len(digits) < _DIGITS.get(char, 0) and (yield from source.peek()):
        if not _HEX.match(source.text, source.at):
            break
        digits += source.take(1)
    code = int(digits, 16) if len(digits) == _DIGITS.get(char) else -1
    if 0 <= code < 0x10000:
        return f"\\u{code:04x}"  # half of a surrogate pair too, which JSON writes in the same way
    return quoted(chr(code)) if 0 < code < 0x110000 else f"\\\\{quoted(char)}{digits}"


_EXPRESSION = re.compile(r"""[^\s,:()\[\]{}'"]+""")


def _expression(source: Source) -> Steps[str]:
    """Read what is no literal, up to what may follow a literal: brackets in it are balanced."""
    pieces: list[str] = []
    depth = 0
    while char := (yield from source.peek()):
        if depth == 0 and (char in _CLOSERS or char in ",:"):
            break
        depth += (char in "([{") - (char in _CLOSERS)
        found = _EXPRESSION.match(source.text, source.at)
        pieces.append(source.take(found.end() - source.at if found else 1))
    return "".join(pieces).strip()


def _is_number(text: str) -> bool:
    try:
        return not isinstance(from_json(text, allow_inf_nan=False), str | list | dict)
    except ValueError:
        return False
