"""Calls that are JSON objects, {"name": ..., "arguments": {...}}: alone, one behind the other or in a list."""

from chatfleet.chat.formats.reader import Reader, json_string, json_value, unquoted
from chatfleet.chat.formats.source import SPACE, Steps

_MEMBERS = ("name", "arguments", "parameters", "type", "function", "id")
_MAX_NESTING = 4  # {"function": {"name": ...}}, and a bound for what only looks like it


def json_calls(reader: Reader, *, close: str = "", known: bool = False, listed: bool = False) -> Steps[None]:
    """Read `{...}`, `[{...}, {...}]` or `{...}; {...}`, and `close` behind it where it is there. `listed` says that
    the list's bracket has been read.

    With `known`, for formats in which nothing else tells a call from other JSON, only the functions of the request can
    be called. What was read and belongs to none is left in the source's record.
    """
    source = reader.source
    called = False
    yield from source.skip()
    listed = listed or (yield from source.accept("["))
    while True:
        yield from source.skip()
        if not (yield from _call(reader, known=known)):
            break
        called = True
        reader.end()
        yield from source.skip()
        if (yield from source.peek()) in (",", ";"):
            source.take(1)
            yield from source.skip()
        if (yield from source.peek()) != "{":
            break
    if called and listed and (yield from source.accept("]")):
        reader.end()
    if called and close:
        yield from source.skip(SPACE + "}")  # weak models close too often
        if (yield from source.accept(close)):
            reader.end()


def _call(reader: Reader, *, known: bool, depth: int = 0) -> Steps[bool]:
    """One object. Members other than name and arguments (or parameters, as some models say) mean nothing."""
    source = reader.source
    if depth == _MAX_NESTING or not (yield from source.accept("{")):
        return False
    called = argued = False
    held: list[str] = []
    while True:
        yield from source.skip()
        if (yield from source.accept("}")):
            break
        key = yield from json_string(source)
        if key is None or (known and not called and key not in _MEMBERS):
            return called
        yield from source.skip()
        if not (yield from source.accept(":")):
            return called
        yield from source.skip()
        if key in ("name", "function") and not called and (yield from source.peek()) != "{":
            name = yield from json_string(source)
            if not name or (known and name not in reader.functions):
                return False
            called = True
            reader.begin(name)
            if argued:
                reader.arguments(_given("".join(held)))
        elif key == "function" and not called:
            called = argued = yield from _call(reader, known=known, depth=depth + 1)
            if not called:
                return False
        elif key in ("arguments", "parameters") and not argued:
            argued = True
            if not called:
                yield from json_value(source, held.append)
            elif (yield from source.peek()) in ("{", "["):
                yield from json_value(source, reader.arguments)
            else:
                whole: list[str] = []
                yield from json_value(source, whole.append)
                reader.arguments(_given("".join(whole)))
        else:
            yield from json_value(source, _ignore)
        yield from source.skip()
        if not (yield from source.accept(",")):
            if not (yield from source.accept("}")):
                return called
            break
    if called and not argued:
        reader.arguments("{}")
    return called


def _given(arguments: str) -> str:
    """Arguments as the client gets them: none are {}, and an object that was written into a string is taken out."""
    if arguments == "null":
        return "{}"
    inner = unquoted(arguments) if arguments.startswith('"') else None
    return inner if inner is not None and inner.lstrip(SPACE).startswith("{") else arguments


def _ignore(_: str) -> None:
    pass
