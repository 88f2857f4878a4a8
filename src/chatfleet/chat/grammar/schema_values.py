"""Whether a JSON value validates against a schema: what decides on constants."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final

from chatfleet.chat.grammar import charsets
from chatfleet.chat.grammar.automata import Automaton, TooLarge, of_node
from chatfleet.chat.grammar.budget import tick
from chatfleet.chat.grammar.matching import matches
from chatfleet.chat.grammar.nodes import Grammar, Node
from chatfleet.chat.grammar.schema_merge import Constants, Schema, canonical, type_of, types_of

_MAX_DEPTH: Final = 200


class Validator:
    """Validates values against schemas whose keywords are those that grammars honour, alone or merged.

    `plain` gives a schema's keywords without annotations, `resolve` what a reference leads to, `language` the node of
    texts of a pattern or a format; each raises for what cannot be honoured.
    """

    def __init__(
        self,
        plain: Callable[[Any, str], Schema],
        resolve: Callable[[Any, str], Any],
        language: Callable[[str, str, str], Node],
    ) -> None:
        self._plain = plain
        self._resolve = resolve
        self._language = language
        self._automata: dict[tuple[str, str], Automaton | Node] = {}
        self._constants = Constants()

    def fits(self, value: Any, schema: Any, place: str, depth: int = 0) -> bool:
        """Whether `value` validates against a schema as it is written. Raises RecursionError for references that go in
        circles."""
        if isinstance(schema, bool):
            return schema
        if depth > _MAX_DEPTH:
            raise RecursionError
        return self.fits_plain(value, self._plain(schema, place), place, depth)

    def fits_plain(self, value: Any, schema: Schema, place: str, depth: int = 0) -> bool:
        """The same for one without annotations, in which lists of patterns and the like may stand too."""
        tick()
        name = type_of(value)
        if name not in types_of(schema) or not self._is_among(value, schema):
            return False
        if not self._fits_others(value, schema, place, depth + 1):
            return False
        match value:
            case bool() | None:
                return True
            case int() | float():
                return _is_number(value, schema)
            case str():
                return self._is_text(value, schema, place)
            case list():
                return self._is_array(value, schema, place, depth + 1)
        return self._is_object(value, schema, place, depth + 1)

    def _is_among(self, value: Any, schema: Schema) -> bool:
        if "const" in schema and canonical(value) != canonical(schema["const"]):
            return False
        return "enum" not in schema or canonical(value) in self._constants.of(schema["enum"])

    def _fits_others(self, value: Any, schema: Schema, place: str, depth: int) -> bool:
        if "$ref" in schema and not self.fits(value, self._resolve(schema["$ref"], place), str(schema["$ref"]), depth):
            return False
        if not all(self.fits(value, part, f"{place}/allOf", depth) for part in schema.get("allOf", [])):
            return False
        for options in _all(schema, "anyOf"):
            if not any(self.fits(value, option, f"{place}/anyOf", depth) for option in options):
                return False
        return all(
            sum(self.fits(value, option, f"{place}/oneOf", depth) for option in options) == 1
            for options in _all(schema, "oneOf")
        )

    def _is_text(self, value: str, schema: Schema, place: str) -> bool:
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            return False
        return all(
            self._is_in(value, keyword, wanted, place)
            for keyword in ("pattern", "format")
            for wanted in _all(schema, keyword)
        )

    def _is_in(self, value: str, keyword: str, wanted: str, place: str) -> bool:
        known = self._automata.get((keyword, wanted))
        if known is None:
            node = self._language(keyword, wanted, place)
            try:
                known = of_node(node)
            except TooLarge:
                known = node
            self._automata[keyword, wanted] = known
        return _accepts(known, value) if isinstance(known, Automaton) else matches(Grammar(known), value)

    def _is_array(self, value: list[Any], schema: Schema, place: str, depth: int) -> bool:
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return False
        head = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        return all(
            self.fits(item, head[index] if index < len(head) else rest, f"{place}/items", depth)
            for index, item in enumerate(value)
        )

    def _is_object(self, value: dict[str, Any], schema: Schema, place: str, depth: int) -> bool:
        if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
            return False
        if not all(name in value for name in schema.get("required", [])):
            return False
        properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, item in value.items():
            own = [properties[name]] if name in properties else []
            own += [part for pattern, part in patterns.items() if self._is_in(name, "pattern", pattern, place)]
            if not all(
                self.fits(item, part, f"{place}/properties", depth)
                for part in own or [schema.get("additionalProperties", True)]
            ):
                return False
        return True


def _all(schema: Schema, keyword: str) -> list[Any]:
    """What stands under a keyword, alone or in the list of a merged schema."""
    return [*([schema[keyword]] if keyword in schema else []), *schema.get(f"{keyword}s", [])]


def _is_number(value: int | float, schema: Schema) -> bool:
    if "multipleOf" in schema:
        step = Fraction(str(schema["multipleOf"]))
        if step <= 0 or (Fraction(str(value)) / step).denominator != 1:
            return False
    return (
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )


def _accepts(automaton: Automaton, value: str) -> bool:
    state = 0
    for char in value:
        tick()
        following = (target for ranges, target in automaton.edges[state] if charsets.contains(ranges, char))
        found = next(following, None)
        if found is None:
            return False
        state = found
    return automaton.accepting[state]
