"""Several schemas that one value must satisfy, as one schema."""

import json
from collections.abc import Callable
from typing import Any, Final

Schema = dict[str, Any]
Refuse = Callable[[str, str], Exception]
"""Makes the error for a keyword and what about it cannot be honoured."""

_TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")
_LARGEST: Final = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_SMALLEST: Final = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
_LISTED: Final = {"pattern": "patterns", "anyOf": "anyOfs", "oneOf": "oneOfs", "format": "formats"}
"""Keywords of which a value may have to satisfy several; merged schemas have them under the second name, as lists."""


def types_of(schema: Schema) -> frozenset[str]:
    """The types that `schema` leaves; "number" stands for those that are no integers too."""
    named = schema.get("type", _TYPES)
    names = {named} if isinstance(named, str) else set(named)
    return frozenset(names | {"integer"} if "number" in names else names)


def json_equal(one: Any, other: Any) -> bool:
    """Equal as JSON values: 1 is 1.0, and neither is true."""
    return _canonical(one) == _canonical(other)


def _canonical(value: Any) -> str:
    def plain(item: Any) -> Any:
        if isinstance(item, float) and item.is_integer():
            return int(item)
        if isinstance(item, dict):
            return {name: plain(part) for name, part in item.items()}
        return [plain(part) for part in item] if isinstance(item, list) else item

    return json.dumps(plain(value), sort_keys=True)


def listed(schema: Schema) -> Schema:
    """The schema with the keywords of `_LISTED` as lists, and `const` as an `enum`."""
    result = {name: value for name, value in schema.items() if name not in _LISTED and name != "const"}
    for name, plural in _LISTED.items():
        if name in schema:
            result[plural] = [*result.get(plural, []), schema[name]]
    if "const" in schema:
        constants = [schema["const"]]
        if "enum" in schema:
            constants = [value for value in schema["enum"] if json_equal(value, schema["const"])]
        result["enum"] = constants
    return result


def merged(one: Schema, other: Schema, refuse: Refuse) -> Schema:
    """What both ask for; both and the result are as `listed` gives them."""
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
            result["enum"] = [item for item in result["enum"] if any(json_equal(item, known) for known in value)]
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
    properties: Schema = {}
    for name in dict.fromkeys([*one.get("properties", {}), *other.get("properties", {})]):
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


def exclude_each_other(one: Schema, other: Schema, resolve: Callable[[Any], Any]) -> bool:
    """Whether no value can satisfy both, as far as types, constants and required properties tell."""
    if "enum" in one and "enum" in other:
        return not any(json_equal(item, known) for item in one["enum"] for known in other["enum"])
    if "enum" in other:
        one, other = other, one
    left = {_type_of(value) for value in one["enum"]} if "enum" in one else types_of(one)
    if left.isdisjoint(types_of(other)):
        return True
    if left & types_of(other) != {"object"}:
        return False
    required = set(one.get("required", [])) | set(other.get("required", []))
    shared = one.get("properties", {}).keys() & other.get("properties", {}).keys() & required
    for first, second in ((one, other), (other, one)):
        if first.get("additionalProperties") is False and "patternProperties" not in first:
            unknown = set(second.get("required", [])) - first.get("properties", {}).keys()
            if unknown:
                return True
    for name in shared:
        schemas = [resolve(schema["properties"][name]) for schema in (one, other)]
        if False in schemas:
            return True
        if all(isinstance(schema, dict) for schema in schemas) and exclude_each_other(schemas[0], schemas[1], resolve):
            return True
    return False


def _type_of(value: Any) -> str:
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
