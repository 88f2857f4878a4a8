"""Calls written as a list of Python calls, [f(a=1, b="x"), g()]: Llama 4, Llama 3.2 and others."""

import re
from collections.abc import Mapping
from math import inf, isfinite

from pydantic_core import from_json

from chatfleet.chat.formats.json_calls import json_calls
from chatfleet.chat.formats.reader import Reader, quoted
from chatfleet.chat.formats.source import Sink, Source, Steps

_WORD = re.compile(r"[\w.\-]+")
_GAP = re.compile(r"\s+")
_MAX_NESTING = 32
_CLOSERS = frozenset(")]}")
_PREFIXES = frozenset(("r", "b", "u", "f", "br", "rb", "fr", "rf"))
_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_SIMPLE_ESCAPES = frozenset('ntrbf"\\')


def pythonic_calls(reader: Reader, *, close: str = "") -> Steps[None]:
    """Read `[f(...), ...]`, or calls that are JSON, of functions of the request."""
    source = reader.source
    yield from source.skip()
    if (yield from source.peek()) == "{":
        yield from json_calls(reader, known=True, close=close)
        return
    if not (yield from source.accept("[")):
        return
    yield from source.skip()
    if (yield from source.peek()) == "{":
        yield from json_calls(reader, known=True, close=close, listed=True)
        return
    while True:
        yield from source.skip()
        name = yield from source.word(_WORD)
        if name not in reader.functions or not (yield from source.accept("(")):
            return
        reader.begin(name)
        if not (yield from _arguments(reader, name)):
            return
        reader.end()
        yield from source.skip()
        if (yield from source.accept(",")):
            continue
        for end in ("]", close):
            if end and (yield from source.accept(end)):
                reader.end()
                yield from source.skip()
        return


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
        if (yield from source.accept("**{")):
            items = yield from _items(reader, "{", 1, count)
            if items is None:
                return False
            count = items
            yield from source.skip()
            if not (yield from source.accept(",")) and (yield from source.peek()) != ")":
                return False
            continue
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
        return (yield from _strings(reader, first))
    if not word and first in ("[", "(", "{") and depth < _MAX_NESTING:
        source.take(1)
        return (yield from _container(reader, first, depth + 1))
    word = word or (yield from source.word(_WORD))
    if word.lower() in _PREFIXES and (quote := (yield from source.peek())) and quote in _STRING:
        return (yield from _strings(reader, quote, raw="r" in word.lower()))
    text = (yield from _expression(source, ",", word)).strip()
    ended = bool((yield from source.peek()))
    if text or ended:
        reader.arguments(_CONSTANTS.get(text) or _number(text) or f'"{quoted(text)}' + ('"' if ended else ""))
    return ended


def _container(reader: Reader, opened: str, depth: int) -> Steps[bool]:
    """Read the items of a list, tuple or dict from behind its bracket on."""
    reader.arguments("{" if opened == "{" else "[")
    if (yield from _items(reader, opened, depth, 0)) is None:
        return False
    reader.arguments("}" if opened == "{" else "]")
    return True


def _items(reader: Reader, opened: str, depth: int, count: int) -> Steps[int | None]:
    """Read items up to and with the bracket behind them; `count` were before them. Returns how many there are with
    these, None where the bracket did not come."""
    source = reader.source
    while True:
        yield from source.skip()
        if (yield from source.peek()) in _CLOSERS:
            source.take(1)
            return count
        if not (yield from source.peek()):
            return None
        if count:
            reader.arguments(", ")
        count += 1
        if opened == "{":
            if (yield from source.peek()) in _STRING:
                reader.arguments('"')
                if not (yield from _string(reader, source.text[source.at])):
                    return None
                reader.arguments('"')
            else:
                reader.arguments(f'"{quoted((yield from _expression(source, ",:")).strip())}"')
            yield from source.skip()
            if not (yield from source.accept(":")):
                return None
            reader.arguments(": ")
            yield from source.skip()
        if not (yield from _literal(reader, "", depth)):
            return None
        yield from source.skip()
        if not (yield from source.accept(",")) and (yield from source.peek()) not in _CLOSERS:
            return None


_STRING = {quote: re.compile(rf"[^{quote}\\]+") for quote in "'\""}


def _strings(reader: Reader, quote: str, *, raw: bool = False) -> Steps[bool]:
    """Read a string from its quotation mark on and what is joined to it, by "+" or by nothing, and give them as one.
    Whatever else is done to it is text behind it."""
    source = reader.source
    reader.arguments('"')
    while (yield from _string(reader, quote, raw=raw)):
        yield from source.skip()
        joint = "+" if (yield from source.accept("+")) else ""
        yield from source.skip()
        word = yield from source.word(_WORD)
        quote = yield from source.peek()
        if quote not in _STRING or (word and word.lower() not in _PREFIXES):
            rest = yield from _expression(source, ",", word)
            reader.arguments(quoted(joint + rest.rstrip()) + '"')
            return True
        raw = "r" in word.lower()
    return False


def _string(reader: Reader, quote: str, *, raw: bool = False) -> Steps[bool]:
    """Read a string from its quotation mark on and give its inside. In a `raw` one a backslash is only itself."""
    source = reader.source
    source.take(1)
    end = quote
    if (yield from source.accept(quote)):
        if not (yield from source.accept(quote)):
            return True
        end = quote * 3
    while first := (yield from source.peek()):
        if first == quote:
            if (yield from source.accept(end)):
                return True
            reader.arguments(quoted(source.take(1)))
        elif first == "\\":
            source.take(1)
            reader.arguments((yield from (_unescaped(source) if raw else _escape(source))))
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


def _unescaped(source: Source) -> Steps[str]:
    """Read what stands behind a backslash that means nothing: not even a quotation mark ends the string there."""
    return "\\\\" + (quoted(source.take(1)) if (yield from source.peek()) else "")


_EXPRESSION = re.compile(r"""[^,:()\[\]{}'"]+""")


def _expression(source: Source, stops: str, begun: str = "") -> Steps[str]:
    """Read what is no literal, up to a closing bracket or one of `stops`: brackets and strings in it are honoured, but
    not the apostrophe of a word. Returns it behind `begun`, which has been read."""
    pieces = [begun]
    depth = 0
    while char := (yield from source.peek()):
        if depth == 0 and (char in _CLOSERS or char in stops):
            break
        depth += (char in "([{") - (char in _CLOSERS)
        found = _EXPRESSION.match(source.text, source.at)
        in_word = pieces[-1][-1:].isalnum()
        pieces.append(source.take(found.end() - source.at if found else 1))
        if char in _STRING and not in_word:
            yield from _skip_string(source, char, pieces.append)
    return "".join(pieces)


def _skip_string(source: Source, quote: str, sink: Sink) -> Steps[None]:
    """Read a string, as it stands, from behind its quotation mark on."""
    while (tag := (yield from source.until(("\\", quote), sink))) is not None:
        sink(source.take(1))
        if tag == quote:
            return
        if (yield from source.peek()):
            sink(source.take(1))


_FRACTION = re.compile(r"[.eE]")


def _number(text: str) -> str | None:
    """A number as JSON writes it, from how JSON or Python do; None where it is none."""
    try:
        if not isinstance(from_json(text, allow_inf_nan=False), str | list | dict):
            return text
    except ValueError:
        pass
    try:
        return str(int(text, 0))
    except ValueError:
        pass
    try:
        value = float(text) if _FRACTION.search(text) else inf
    except ValueError:
        return None
    return repr(value) if isfinite(value) else None
