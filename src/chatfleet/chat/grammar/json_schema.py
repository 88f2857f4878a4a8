"""JSON schemas (draft 2020-12, and what of older drafts means the same) as grammars.

What a grammar lets through validates against its schema. Properties come in the schema's order, others behind them.
`oneOf` is honoured where the options exclude each other by type, constants or required properties. A keyword that
cannot be honoured is refused by name and place; annotations say nothing.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn
from urllib.parse import unquote

from chatfleet.chat.grammar import limits
from chatfleet.chat.grammar.automata import TooLarge
from chatfleet.chat.grammar.budget import tick
from chatfleet.chat.grammar.finishing import finished
from chatfleet.chat.grammar.formats import FORMATS, FORMLESS, of_format
from chatfleet.chat.grammar.json_text import FALSE, NULL, TRUE, VALUE, VALUE_RULES, constant
from chatfleet.chat.grammar.matching import TooManyWays
from chatfleet.chat.grammar.nodes import (
    NOTHING,
    CharSet,
    Grammar,
    Literal,
    Node,
    Reference,
    Token,
    checked,
    choice,
)
from chatfleet.chat.grammar.regex import search
from chatfleet.chat.grammar.schema_merge import Exclusion, Schema, listed, merged, types_of
from chatfleet.chat.grammar.schema_types import TypeCompiler, array, number, object_of, text_string
from chatfleet.chat.grammar.schema_values import Validator
from chatfleet.chat.grammar.strings import ANY_TEXT
from chatfleet.core.errors import InvalidRequest, UnsupportedParameter

ANNOTATIONS: Final = frozenset(
    {"title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "strict"}
    | {"$schema", "$id", "$comment", "$anchor", "$vocabulary", "$defs", "definitions", "contentEncoding"}
    | {"contentMediaType", "contentSchema", "discriminator", "externalDocs", "xml"}
)
_BY_TYPE: Final[dict[str, frozenset[str]]] = {
    "object": frozenset(
        {"properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"}
    ),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format", "patterns", "formats"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
}
HONOURED: Final = frozenset(
    {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "nullable", "uniqueItems"}.union(*_BY_TYPE.values())
) - {"patterns", "formats"}
_COUNTS: Final = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_TYPE_NAMES: Final = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_MAX_MERGES: Final = 4096
_SHOWN_PLACE: Final = 120


def from_json_schema(schema: object, *, param: str | None) -> Grammar:
    """JSON values that validate against `schema`, which is as `json.loads` gives it.

    Raises UnsupportedParameter for what no grammar can honour, naming keyword and place, and InvalidRequest for what
    is no schema, excludes every value, or is too large.
    """
    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequest(
            "The schema is no JSON, or nested too deeply. Numbers must be finite, and characters whole.", param=param
        ) from exc
    if size > limits.MAX_SOURCE_BYTES:
        raise InvalidRequest(f"The schema has {size} bytes as JSON, of at most {limits.MAX_SOURCE_BYTES}.", param=param)
    try:
        compiler = _Compiler(schema, param)
        root = compiler.node(schema, "#")
        grammar = checked(Grammar(root, compiler.rules), param=param)
        return checked(finished(grammar, param=param), param=param)
    except RecursionError as exc:
        raise InvalidRequest("The schema is nested too deeply.", param=param) from exc


class _Compiler(TypeCompiler):
    def __init__(self, schema: object, param: str | None) -> None:
        self._document = schema
        self._param = param
        self._rule_of: dict[str, str] = {}
        self._flat_of: dict[int, tuple[Any, Schema]] = {}
        self._validator = Validator(self._checked, self._resolved, self.language)
        self._count = 0
        self._depth = 0
        self._merges = 0
        self.rules: dict[str, Node] = dict(VALUE_RULES)

    def refused(self, keyword: str, why: str, place: str) -> UnsupportedParameter:
        return UnsupportedParameter(
            f"`{keyword}` at {_shown(place)} of the schema cannot be honoured: {why}.", param=self._param
        )

    def invalid(self, what: str, place: str) -> InvalidRequest:
        return InvalidRequest(f"At {_shown(place)} of the schema: {what}.", param=self._param)

    def shared(self, node: Node) -> Node:
        """The node as something short, since it will stand in several places."""
        if isinstance(node, Token | Literal | CharSet | Reference) or node == NOTHING:
            return node
        name = self.rule_name()
        self.rules[name] = node
        return Reference(name)

    def rule_name(self) -> str:
        """A name that no rule begins with yet."""
        self._count += 1
        return f"n{self._count}_"

    def node(self, schema: Any, place: str) -> Node:
        """Values that validate against a schema at `place`."""
        self._spend(place)
        if schema is True or schema == {}:
            return Reference(VALUE)
        if schema is False:
            return NOTHING
        self._depth += 1
        try:
            if isinstance(schema, dict) and "$ref" in schema and not schema.keys() - ANNOTATIONS - {"$ref"}:
                self._check_address(schema, place)
                return self._reference(schema["$ref"], place)
            return self._merged_node(self._flat(schema, place), place)
        finally:
            self._depth -= 1

    def _spend(self, place: str) -> None:
        tick()
        self._count += 1
        if self._count > limits.MAX_SUBSCHEMAS * 2:
            raise self.invalid(f"the schema has too many parts: more than {limits.MAX_SUBSCHEMAS}", place)
        if self._depth > limits.MAX_DEPTH:
            raise self.invalid(f"it is nested deeper than {limits.MAX_DEPTH}", place)

    def _reference(self, reference: object, place: str) -> Node:
        target = self._resolved(reference, place)
        pointer = str(reference)
        if pointer not in self._rule_of:
            self._rule_of[pointer] = name = f"d{len(self._rule_of)}"
            self.rules[name] = NOTHING  # known by name while it is made, for references to itself
            depth, self._depth = self._depth, 0
            self.rules[name] = self.node(target, pointer)
            self._depth = depth
        return Reference(self._rule_of[pointer])

    def _resolved(self, reference: object, place: str) -> Any:
        if not isinstance(reference, str):
            raise self.invalid("`$ref` must be a text", place)
        address = _address_of(self._document)
        if address and reference.startswith(f"{address}#"):
            reference = reference.removeprefix(address)
        if reference.startswith("#") and not reference.startswith("#/") and reference != "#":
            raise self.refused("$ref", f"{reference!r} is an anchor; only places such as #/$defs/name are found", place)
        if not reference.startswith("#"):
            raise self.refused("$ref", f"{reference!r} leads out of the schema; only #/... is followed", place)
        target: Any = self._document
        for step in reference.split("/")[1:]:
            if target is not self._document and _address_of(target):
                raise self.refused(
                    "$id", f"`$ref` {reference!r} leads through a part with an address of its own", place
                )
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                raise self.invalid(f"`$ref` {reference!r} leads nowhere", place)
        return target

    def _checked(self, schema: Any, place: str) -> Schema:
        """The schema without annotations, its keywords known and their values of the right kind."""
        if not isinstance(schema, dict):
            raise self.invalid(f"a schema is an object, true or false, not {type(schema).__name__}", place)
        self._check_address(schema, place)
        plain = {}
        for name, value in schema.items():
            tick()
            if name in ANNOTATIONS or name.startswith("x-"):
                continue
            if name not in HONOURED:
                raise self.refused(name, "no grammar here knows it", place)
            plain[name] = value
        self._check_values(plain, place)
        if plain.pop("nullable", False):
            raise self.refused("nullable", 'it is not of JSON Schema; write `"type": [..., "null"]`', place)
        if plain.pop("uniqueItems", False):
            raise self.refused("uniqueItems", "a grammar cannot compare items", place)
        return plain

    def _check_address(self, schema: Schema, place: str) -> None:
        if schema is not self._document and _address_of(schema) and _has_references(schema):
            raise self.refused(
                "$id", "references below it would count from its address; only the whole schema may have one", place
            )

    def _check_values(self, schema: Schema, place: str) -> None:
        def wrong(name: str, what: str) -> NoReturn:
            raise self.invalid(f"`{name}` must be {what}", place)

        for name in _COUNTS:
            if name in schema:
                value = schema[name]
                if isinstance(value, float) and value.is_integer():
                    schema[name] = value = int(value)
                if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                    wrong(name, "a count, 0 or more")
                if value > limits.MAX_REPEAT:
                    raise self.invalid(f"`{name}` is {value}, of at most {limits.MAX_REPEAT}", place)
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
            if name in schema and (not isinstance(schema[name], int | float) or isinstance(schema[name], bool)):
                wrong(name, "a number")
        for name in ("properties", "patternProperties"):
            if not isinstance(schema.get(name, {}), dict):
                wrong(name, "an object of schemas")
        for name in ("prefixItems", "anyOf", "oneOf", "allOf"):
            if name in schema and (not isinstance(schema[name], list) or (not schema[name] and name != "prefixItems")):
                wrong(name, "a list of schemas")
        for name in ("pattern", "format"):
            if not isinstance(schema.get(name, ""), str):
                wrong(name, "a text")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            wrong("required", "a list of names")
        named = schema.get("type", [])
        names = named if isinstance(named, list) else [named]
        if ("type" in schema and not names) or not all(isinstance(name, str) and name in _TYPE_NAMES for name in names):
            wrong("type", "of " + ", ".join(sorted(_TYPE_NAMES)))
        values = schema.get("enum", [])
        if not isinstance(values, list) or ("enum" in schema and not values):
            wrong("enum", "a list with values")
        if len(values) > limits.MAX_ENUM_VALUES:
            raise self.invalid(f"`enum` has {len(values)} values, of at most {limits.MAX_ENUM_VALUES}", place)

    def _flat(self, schema: Any, place: str) -> Schema:
        """The schema with what `$ref` beside others and `allOf` bring merged into it."""
        plain = self._checked(schema, place)
        parts = [(part, f"{place}/allOf/{index}") for index, part in enumerate(plain.pop("allOf", []))]
        if "$ref" in plain:
            reference = plain.pop("$ref")
            parts.append((self._resolved(reference, place), str(reference)))
        result = listed(plain)
        for part, part_place in parts:
            self._merges += 1
            if self._merges > _MAX_MERGES:
                raise self.invalid(
                    f"more than {_MAX_MERGES} schemas are to be merged, or they refer to themselves in a circle", place
                )
            if part is False:
                return {"enum": []}
            if part is not True:
                result = merged(
                    result, self._flat(part, part_place), lambda keyword, why: self.refused(keyword, why, place)
                )
        return result

    def _merged_node(self, schema: Schema, place: str) -> Node:
        """Values that validate against a schema as `_flat` gives it."""
        self._spend(place)
        if "enum" in schema:
            return self._enumerated(schema, place)
        for plural, name in (("anyOfs", "anyOf"), ("oneOfs", "oneOf")):
            if schema.get(plural):
                first, *others = schema[plural]
                rest = {key: value for key, value in schema.items() if key != plural}
                if others:
                    rest[plural] = others
                return self._options(first, rest, name, place)
        constrained = schema.keys() - {"anyOfs", "oneOfs"}
        if not constrained:
            return Reference(VALUE)
        return choice(self._of_type(name, schema, place) for name in sorted(types_of(schema)))

    def _options(self, options: list[Any], rest: Schema, name: str, place: str) -> Node:
        places = [f"{place}/{name}/{index}" for index in range(len(options))]
        possible = [(option, at) for option, at in zip(options, places, strict=True) if option is not False]
        if name == "oneOf":
            exclusion = Exclusion(lambda part: self._known_flat(part, place))
            if exclusion.overlap([{} if option is True else self._known_flat(option, at) for option, at in possible]):
                raise self.refused("oneOf", "its options do not plainly exclude each other; use `anyOf`", place)

        def refuse(keyword: str, why: str) -> Exception:
            return self.refused(keyword, why, place)

        def node(option: Any, at: str) -> Node:
            if not rest:
                return self.node(option, at)
            return self._merged_node(merged(rest, {} if option is True else self._flat(option, at), refuse), at)

        return choice(node(option, at) for option, at in possible)

    def _known_flat(self, schema: Any, place: str) -> Any:
        """The same as `_flat`, made once."""
        if isinstance(schema, bool):
            return schema
        if id(schema) not in self._flat_of:
            self._flat_of[id(schema)] = schema, self._flat(schema, place)
        return self._flat_of[id(schema)][1]

    def _enumerated(self, schema: Schema, place: str) -> Node:
        """Constants, as far as they meet the schema's other conditions."""
        others = {name: value for name, value in schema.items() if name != "enum"}
        try:
            return choice(
                constant(_plain_number(value))
                for value in schema["enum"]
                if self._validator.fits_plain(value, others, place)
            )
        except TooManyWays as exc:
            raise self.refused("enum", "a pattern can read a constant in too many ways", place) from exc

    def language(self, keyword: str, wanted: str, place: str) -> Node:
        """Texts in which a pattern is found, or that are of a format."""
        if keyword == "pattern":
            return search(wanted, param=self._param, where=f"`pattern` at {_shown(place)} of the schema")
        if wanted in FORMLESS:
            return ANY_TEXT
        if wanted not in FORMATS:
            raise self.refused("format", f"{wanted!r} is not one of {', '.join(sorted(FORMATS))}", place)
        return of_format(wanted)

    def _of_type(self, name: str, schema: Schema, place: str) -> Node:
        relevant = {key: value for key, value in schema.items() if key in _BY_TYPE.get(name, ())}
        try:
            match name:
                case "null":
                    return NULL
                case "boolean":
                    return choice([TRUE, FALSE])
                case "integer" | "number":
                    relevant = {key: value for key, value in schema.items() if key in _BY_TYPE["number"]}
                    if name == "integer" and "number" in types_of(schema):
                        return NOTHING
                    return number(self, relevant, place, is_integer=name == "integer")
                case "string":
                    return text_string(self, relevant, place)
                case "array":
                    return array(self, relevant, place)
            return object_of(self, relevant, place)
        except TooLarge as exc:
            raise self.refused(
                ", ".join(key.rstrip("s") if key in ("patterns", "formats") else key for key in relevant),
                "together they make too large a grammar",
                place,
            ) from exc


def _shown(place: str) -> str:
    return place if len(place) <= _SHOWN_PLACE else f"{place[:_SHOWN_PLACE]}..."


def _plain_number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def _address_of(schema: Any) -> str | None:
    """The address that `$id` gives a schema; a mere name within the document is none."""
    address = schema.get("$id") if isinstance(schema, dict) else None
    return address.removesuffix("#") if isinstance(address, str) and not address.startswith("#") else None


def _has_references(schema: Any) -> bool:
    """Whether there is a `$ref` anywhere in it."""
    pending = [schema]
    while pending:
        tick()
        part = pending.pop()
        if isinstance(part, dict):
            if "$ref" in part:
                return True
            pending.extend(part.values())
        elif isinstance(part, list):
            pending.extend(part)
    return False


def honoured_keywords() -> Mapping[str, str]:
    """Every keyword that is not refused, and whether it is honoured or an annotation."""
    return dict.fromkeys(sorted(HONOURED), "honoured") | dict.fromkeys(sorted(ANNOTATIONS), "annotation")
