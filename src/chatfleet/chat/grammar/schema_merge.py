"""Several schemas that one value must satisfy, as one schema."""

import json
from collections.abc import Callable
from typing import Any, Final

from chatfleet.chat.grammar.budget import tick

Schema = dict[str, Any]
Refuse = Callable[[str, str], Exception]
"""Makes the error for a keyword and what about it cannot be honoured."""

_TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")
_LARGEST: Final = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_SMALLEST: Final = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
_LISTED: Final = {"pattern": "patterns", "anyOf": "anyOfs", "oneOf": "oneOfs", "format": "formats"}
"""Keywords of which a value may have to satisfy several; merged schemas have them under the second name, as lists."""

_MAX_LOOKED_INTO: Final = 4
"""How deep properties in properties are looked at for what tells two objects apart."""


def types_of(schema: Schema) -> frozenset[str]:
    """The types that `schema` leaves; "number" stands for those that are no integers too."""
    named = schema.get("type", _TYPES)
    names = {named} if isinstance(named, str) else set(named)
    return frozenset(names | {"integer"} if "number" in names else names)


def canonical(value: Any) -> str:
    """The same text for values that are equal as JSON values: 1 is 1.0, and neither is true."""
    tick()

    def plain(item: Any) -> Any:
        if isinstance(item, float) and item.is_integer():
            return int(item)
        if isinstance(item, dict):
            return {name: plain(part) for name, part in item.items()}
        return [plain(part) for part in item] if isinstance(item, list) else item

    return json.dumps(plain(value), sort_keys=True)


class Constants:
    """Lists of constants as sets of their canonical texts, each made once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[list[Any], frozenset[str]]] = {}  # with the list, so that its id stays its own

    def of(self, values: list[Any]) -> frozenset[str]:
        if id(values) not in self._known:
            self._known[id(values)] = values, frozenset(map(canonical, values))
        return self._known[id(values)][1]


def listed(schema: Schema) -> Schema:
    """The schema with the keywords of `_LISTED` as lists, and `const` as an `enum`."""
    result = {name: value for name, value in schema.items() if name not in _LISTED and name != "const"}
    for name, plural in _LISTED.items():
        if name in schema:
            result[plural] = [*result.get(plural, []), schema[name]]
    if "const" in schema:
        constants = [schema["const"]]
        if "enum" in schema:
            wanted = canonical(schema["const"])
            constants = [value for value in schema["enum"] if canonical(value) == wanted]
        result["enum"] = constants
    return result


def merged(one: Schema, other: Schema, refuse: Refuse) -> Schema:
    """What both ask for; both and the result are as `listed` gives them."""
    tick(len(one) + len(other))
    result = dict(one)
    result |= _merged_objects(one, other, refuse)
    result |= _merged_arrays(one, other)
    done = {"properties", "additionalProperties", "patternProperties", "items", "prefixItems"}
    for name, value in other.items():
        if name in done:
            continue
        if name not in result:
            result[name] = value
        elif name == "type":
            both = types_of(one) & types_of(other)
            result["type"] = sorted(both)
        elif name == "enum":
            known = {canonical(item) for item in value}
            result["enum"] = [item for item in result["enum"] if canonical(item) in known]
        elif name in _LARGEST:
            result[name] = max(result[name], value)
        elif name in _SMALLEST:
            result[name] = min(result[name], value)
        elif name == "required":
            result["required"] = list(dict.fromkeys([*result["required"], *value]))
        elif name in _LISTED.values():
            result[name] = [*result[name], *(item for item in value if item not in result[name])]
        elif result[name] != value:
            raise refuse(name, "two schemas that both hold have different ones")
    return result


def all_of(*schemas: Any) -> Any:
    """One schema for several; True says nothing."""
    telling = [schema for schema in schemas if schema is not True and schema != {}]
    if any(schema is False for schema in telling):
        return False
    if not telling:
        return True
    return telling[0] if len(telling) == 1 else {"allOf": telling}


def _merged_objects(one: Schema, other: Schema, refuse: Refuse) -> Schema:
    if not {"properties", "additionalProperties", "patternProperties"} & other.keys():
        return {}
    for first, second in ((one, other), (other, one)):
        if "patternProperties" in first and {"additionalProperties", "patternProperties"} & second.keys():
            raise refuse("patternProperties", "it stands beside other schemas for the same object")
        is_open = first.get("additionalProperties", True) is True
        unknown = second.get("properties", {}).keys() - first.get("properties", {}).keys()
        if "patternProperties" in first and unknown and not is_open:
            raise refuse(
                "patternProperties",
                "it stands with `additionalProperties` beside another schema's properties; name these in one schema",
            )
    properties: Schema = {}
    for name in dict.fromkeys([*one.get("properties", {}), *other.get("properties", {})]):
        tick()
        properties[name] = all_of(
            *(
                schema.get("properties", {}).get(name, schema.get("additionalProperties", True))
                for schema in (one, other)
            )
        )
    result: Schema = {"properties": properties}
    if {"additionalProperties"} & (one.keys() | other.keys()):
        result["additionalProperties"] = all_of(
            one.get("additionalProperties", True), other.get("additionalProperties", True)
        )
    if "patternProperties" in other:
        result["patternProperties"] = other["patternProperties"]
    return result


def _merged_arrays(one: Schema, other: Schema) -> Schema:
    if not {"items", "prefixItems"} & other.keys():
        return {}
    heads = [schema.get("prefixItems", []) for schema in (one, other)]
    rests = [schema.get("items", True) for schema in (one, other)]
    length = max(len(head) for head in heads)
    result: Schema = {"items": all_of(*rests)}
    if length:
        result["prefixItems"] = [
            all_of(*(head[place] if place < len(head) else rest for head, rest in zip(heads, rests, strict=True)))
            for place in range(length)
        ]
    return result


class Exclusion:
    """Whether no value can satisfy two schemas, as far as types, constants and required properties tell.

    `resolve` gives a schema that stands in another as `listed` gives it.
    """

    def __init__(self, resolve: Callable[[Any], Any]) -> None:
        self._resolve = resolve
        self._constants = Constants()

    def overlap(self, schemas: list[Schema]) -> bool:
        """Whether some two of the schemas may have a value in common."""
        taken: set[str] = set()
        for constants in (self._constants.of(schema["enum"]) for schema in schemas if "enum" in schema):
            if taken & constants:
                return True
            taken |= constants
        pairs = (
            (one, other)
            for number, one in enumerate(schemas)
            for other in schemas[number + 1 :]
            if not ("enum" in one and "enum" in other)
        )
        return not all(self._exclude(one, other, 0) for one, other in pairs)

    def _exclude(self, one: Schema, other: Schema, depth: int) -> bool:
        tick()
        if "enum" in one and "enum" in other:
            return self._constants.of(one["enum"]).isdisjoint(self._constants.of(other["enum"]))
        if "enum" in other:
            one, other = other, one
        left = {type_of(value) for value in one["enum"]} if "enum" in one else types_of(one)
        if left.isdisjoint(types_of(other)):
            return True
        if left & types_of(other) != {"object"} or depth == _MAX_LOOKED_INTO:
            return False
        for first, second in ((one, other), (other, one)):
            if first.get("additionalProperties") is False and "patternProperties" not in first:
                unknown = set(second.get("required", [])) - first.get("properties", {}).keys()
                if unknown:
                    return True
        required = set(one.get("required", [])) | set(other.get("required", []))
        shared = one.get("properties", {}).keys() & other.get("properties", {}).keys() & required
        return any(self._exclude_in(name, one, other, depth) for name in sorted(shared))

    def _exclude_in(self, name: str, one: Schema, other: Schema, depth: int) -> bool:
        schemas = [self._resolve(schema["properties"][name]) for schema in (one, other)]
        if False in schemas:
            return True
        return True not in schemas and self._exclude(schemas[0], schemas[1], depth + 1)


def type_of(value: Any) -> str:
    """The narrowest type of a JSON value: an integer is no "number" here."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"
