"""Structural tags: free text in which some tags bring a form. vLLM's legacy form and xgrammar's newer one."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from chatfleet.chat.grammar import limits
from chatfleet.chat.grammar.budget import tick
from chatfleet.chat.grammar.ebnf import from_ebnf
from chatfleet.chat.grammar.free_text import text_without
from chatfleet.chat.grammar.json_schema import from_json_schema
from chatfleet.chat.grammar.nodes import Grammar, alternatives, checked, literal, repeat, sequence, without_nul
from chatfleet.chat.grammar.regex import from_regex
from chatfleet.core.errors import InvalidRequest, UnsupportedParameter


def from_structural_tag(value: object, *, param: str | None) -> Grammar:
    """The grammar of a structural tag, as `json.loads` gives it or as a JSON text. Raises InvalidRequest, and
    UnsupportedParameter for formats that cannot be honoured."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as exc:
            raise InvalidRequest(f"The structural tag is no JSON: {exc}.", param=param) from exc
    try:
        size = len(json.dumps(value, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequest("The structural tag is no JSON, or nested too deeply.", param=param) from exc
    if size > limits.MAX_SOURCE_BYTES:
        raise InvalidRequest(
            f"The structural tag has {size} bytes as JSON, of at most {limits.MAX_SOURCE_BYTES}.", param=param
        )
    reader = _Reader(param)
    tag = reader.mapping(value, "the structural tag")
    if "format" in tag:
        return without_nul(checked(reader.format(tag["format"], "format", 0), param=param), param=param)
    if "structures" not in tag:
        raise InvalidRequest("A structural tag has `format`, or `structures` and `triggers`.", param=param)
    tags = [
        {
            "begin": item.get("begin"),
            "content": {"type": "json_schema", "json_schema": item.get("schema", {})},
            "end": item.get("end"),
        }
        for item in (reader.mapping(entry, "structures") for entry in reader.sequence(tag, "structures", "the tag"))
    ]
    legacy = {"type": "triggered_tags", "triggers": tag.get("triggers"), "tags": tags}
    return without_nul(checked(reader.format(legacy, "structures", 0), param=param), param=param)


class _Reader:
    def __init__(self, param: str | None) -> None:
        self._param = param

    def mapping(self, value: object, place: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise InvalidRequest(f"`{place}` of a structural tag must be an object.", param=self._param)
        return value

    def sequence(self, value: Mapping[str, Any], name: str, place: str) -> list[Any]:
        found = value.get(name)
        if not isinstance(found, list) or not found:
            raise InvalidRequest(f"`{name}` in {place} of the structural tag must be a list.", param=self._param)
        return found

    def text(self, value: Mapping[str, Any], name: str, place: str) -> str:
        found = value.get(name)
        if not isinstance(found, str):
            raise InvalidRequest(f"`{name}` in {place} of the structural tag must be a text.", param=self._param)
        return found

    def texts(self, value: Mapping[str, Any], name: str, place: str) -> list[str]:
        found = self.sequence(value, name, place)
        if not all(isinstance(item, str) and item for item in found):
            raise InvalidRequest(f"`{name}` in {place} of the structural tag must be texts.", param=self._param)
        return found

    def format(self, value: object, place: str, depth: int, stops: tuple[str, ...] = ()) -> Grammar:
        """The grammar of a format; `stops` end free text in it."""
        if depth > limits.MAX_DEPTH:
            raise InvalidRequest(f"The structural tag is nested deeper than {limits.MAX_DEPTH}.", param=self._param)
        tick()
        described = self.mapping(value, place)
        kind = described.get("type")
        read = _FORMATS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise UnsupportedParameter(
                f"The structural tag's format {kind!r} at {place} cannot be honoured. Honoured: "
                f"{', '.join(sorted(_FORMATS))}.",
                param=self._param,
            )
        return read(self, described, place, depth, stops)

    def const_string(self, value: Mapping[str, Any], place: str, depth: int, stops: tuple[str, ...]) -> Grammar:
        return literal(self.text(value, "value" if "value" in value else "text", place))

    def json_schema(self, value: Mapping[str, Any], place: str, depth: int, stops: tuple[str, ...]) -> Grammar:
        return from_json_schema(value.get("json_schema", True), param=self._param)

    def regex(self, value: Mapping[str, Any], place: str, depth: int, stops: tuple[str, ...]) -> Grammar:
        return from_regex(self.text(value, "pattern", place), param=self._param)

    def grammar(self, value: Mapping[str, Any], place: str, depth: int, stops: tuple[str, ...]) -> Grammar:
        return from_ebnf(self.text(value, "grammar", place), param=self._param)

    def any_text(self, value: Mapping[str, Any], place: str, depth: int, stops: tuple[str, ...]) -> Grammar:
        return text_without([*stops, *self._excluded(value, place)])

    def in_order(self, value: Mapping[str, Any], place: str, depth: int, stops: tuple[str, ...]) -> Grammar:
        parts = self.sequence(value, "elements", place)
        return sequence(*(self.format(part, f"{place}.elements", depth + 1, stops) for part in parts))

    def any_of(self, value: Mapping[str, Any], place: str, depth: int, stops: tuple[str, ...]) -> Grammar:
        parts = self.sequence(value, "elements", place)
        return alternatives(*(self.format(part, f"{place}.elements", depth + 1, stops) for part in parts))

    def tag(self, value: Mapping[str, Any], place: str, depth: int, stops: tuple[str, ...]) -> Grammar:
        begin = self.text(value, "begin", place)
        ends = (
            self.texts(value, "end", place) if isinstance(value.get("end"), list) else [self.text(value, "end", place)]
        )
        own_stops = tuple(end for end in ends if end) or stops
        content = self.format(value.get("content"), f"{place}.content", depth + 1, own_stops)
        return sequence(literal(begin), content, alternatives(*(literal(end) for end in ends)))

    def tags_with_separator(self, value: Mapping[str, Any], place: str, depth: int, stops: tuple[str, ...]) -> Grammar:
        one = self._tags(value, place, depth, stops)
        separator = literal(self.text(value, "separator", place))
        more = repeat(sequence(separator, one), 0, 0 if value.get("stop_after_first") else None)
        tags = sequence(one, more)
        return tags if value.get("at_least_one") else repeat(tags, 0, 1)

    def triggered_tags(self, value: Mapping[str, Any], place: str, depth: int, stops: tuple[str, ...]) -> Grammar:
        triggers = self.texts(value, "triggers", place)
        for item in self.sequence(value, "tags", place):
            tick(len(triggers))
            begin = self.text(self.mapping(item, place), "begin", place)
            if sum(begin.startswith(trigger) for trigger in triggers) != 1:
                raise InvalidRequest(
                    f"The tag that begins with {begin!r} in {place} must begin with just one of the triggers.",
                    param=self._param,
                )
        free = text_without([*triggers, *stops, *self._excluded(value, place)])
        tags = self._tags(value, place, depth, stops)
        if value.get("stop_after_first"):
            return sequence(free, tags) if value.get("at_least_one") else sequence(free, repeat(tags, 0, 1))
        more = repeat(sequence(free, tags))
        if value.get("at_least_one"):
            return sequence(free, tags, more, free)
        return sequence(more, free)

    def _excluded(self, value: Mapping[str, Any], place: str) -> list[str]:
        return self.texts(value, "excludes", place) if value.get("excludes") not in (None, []) else []

    def _tags(self, value: Mapping[str, Any], place: str, depth: int, stops: tuple[str, ...]) -> Grammar:
        return alternatives(
            *(
                self.tag(self.mapping(item, place), f"{place}.tags", depth + 1, stops)
                for item in self.sequence(value, "tags", place)
            )
        )


_Format = Callable[[_Reader, Mapping[str, Any], str, int, tuple[str, ...]], Grammar]
_FORMATS: Final[dict[str, _Format]] = {
    "any_text": _Reader.any_text,
    "const_string": _Reader.const_string,
    "grammar": _Reader.grammar,
    "json_schema": _Reader.json_schema,
    "or": _Reader.any_of,
    "regex": _Reader.regex,
    "sequence": _Reader.in_order,
    "tag": _Reader.tag,
    "tags_with_separator": _Reader.tags_with_separator,
    "triggered_tags": _Reader.triggered_tags,
}
