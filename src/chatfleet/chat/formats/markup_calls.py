"""Calls whose arguments stand between tags, one pair for each: GLM and Qwen3-Coder.

Values are bare text, so the function's schema says what they are: a string is taken as it stands, everything else is
JSON where it is JSON that the schema admits, and a string where it is not.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from chatfleet.chat.formats.json_calls import json_calls
from chatfleet.chat.formats.reader import Reader, quoted
from chatfleet.chat.formats.source import Source, Steps


@dataclass(frozen=True, slots=True)
class Markup:
    """The tags. With `lines`, a value's first and last line feed belong to the tags."""

    begin: str
    end: str
    name: tuple[str, str]
    """Before and behind the name. Nothing behind it: the name ends with its line or where a tag begins."""
    key: tuple[str, str]
    value: tuple[str, str]
    function_end: str = ""
    value_ends: tuple[str, ...] = ()
    """What ends a value too where its own end tag is missing; it stays to be read."""
    lines: bool = False


_NAME = re.compile(r"[^\s<>{}\[\]]+")


def markup_calls(reader: Reader, markup: Markup, tag: str) -> Steps[None]:
    """Read one call from `tag` on: `begin`, or what stands before the name where the model forgot `begin`. A call that
    is a JSON object is taken too."""
    source = reader.source
    yield from source.accept(tag)
    yield from source.skip()
    if tag == markup.begin:
        if (yield from source.peek()) in ("{", "["):
            yield from json_calls(reader, close=markup.end)
            return
        if not (yield from source.accept(markup.name[0])):
            return
    name = yield from source.word(_NAME)
    if not name or not (yield from _name_ended(source, markup)):
        return
    reader.begin(name)
    if not (yield from _arguments(reader, markup, _properties(reader.functions.get(name)))):
        return
    for end in (markup.function_end, markup.end):
        yield from source.skip()
        if end and (yield from source.accept(end)):
            reader.end()


def _name_ended(source: Source, markup: Markup) -> Steps[bool]:
    if markup.name[1]:
        return (yield from source.accept(markup.name[1]))
    yield from source.skip()
    return (yield from source.peek()) == "<"


def _arguments(reader: Reader, markup: Markup, properties: Mapping[str, Any]) -> Steps[bool]:
    """Read pairs and give them as an object. Returns whether all that was begun was ended."""
    source = reader.source
    opened, first = "{", True
    while True:
        yield from source.skip()
        if not (yield from source.accept(markup.key[0])):
            break
        words: list[str] = []
        if (yield from source.until((markup.key[1],), words.append)) is None:
            reader.arguments("{" if first else "")
            return False
        yield from source.accept(markup.key[1])
        key = "".join(words).strip()
        if markup.value[0]:
            yield from source.skip()
            yield from source.accept(markup.value[0])
        reader.arguments(f'{opened}"{quoted(key)}": ')
        opened, first = ", ", False
        if not (yield from _value(reader, markup, properties.get(key))):
            return False
    rest = yield from source.peek()
    reader.arguments(("{" if first else "") + ("}" if rest else ""))
    return bool(rest)


def _value(reader: Reader, markup: Markup, schema: Any) -> Steps[bool]:
    source, close = reader.source, markup.value[1]
    ends = (close, *markup.value_ends)
    if markup.lines:
        yield from source.accept("\n")
    admitted = _admitted(schema)
    if admitted == frozenset(("string",)):
        reader.arguments('"')
        with_line = tuple(f"\n{end}" for end in ends) if markup.lines else ()
        end = yield from source.until((*with_line, *ends), lambda piece: reader.arguments(quoted(piece)))
        if end is None:
            return False
        reader.arguments('"')
        yield from source.accept("\n")
    else:
        pieces: list[str] = []
        end = yield from source.until(ends, pieces.append)
        reader.arguments(_json("".join(pieces), admitted, lines=markup.lines))
        if end is None:
            return False
    yield from source.accept(close)
    return True


_SPELLINGS = {"True": "true", "False": "false", "None": "null"}


def _json(text: str, admitted: frozenset[str] | None, *, lines: bool) -> str:
    """The value that `text` is, as JSON."""
    bare = text.strip()
    bare = _SPELLINGS.get(bare, bare)
    try:
        value = from_json(bare, allow_inf_nan=False)
    except ValueError:
        pass
    else:
        if admitted is None or _kinds(value) & admitted:
            return bare
    return f'"{quoted(text.removesuffix(chr(10)) if lines else text)}"'


def _kinds(value: Any) -> set[str]:
    """JSON Schema's names for what a value is."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    if isinstance(value, str):
        return {"string"}
    return {"null"} if value is None else {"array" if isinstance(value, list) else "object"}


def _properties(schema: Any) -> Mapping[str, Any]:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def _admitted(schema: Any) -> frozenset[str] | None:
    """The types that a schema admits, None where it does not say in a simple way."""
    if not isinstance(schema, Mapping):
        return None
    if isinstance(kind := schema.get("type"), str):
        return frozenset((kind,))
    if isinstance(kind, list):
        return frozenset(map(str, kind))
    if isinstance(values := schema.get("enum"), list):
        return frozenset(kind for value in values for kind in _kinds(value))
    if isinstance(variants := schema.get("anyOf", schema.get("oneOf")), list):
        found = [_admitted(variant) for variant in variants]
        return frozenset().union(*(kinds for kinds in found if kinds)) if all(found) else None
    return None
