"""The types of JSON Schema: what their keywords leave of strings, numbers, arrays and objects."""

from decimal import Decimal
from typing import Any, Protocol

from chatfleet.chat.grammar import limits
from chatfleet.chat.grammar.automata import intersection, is_empty, of_node
from chatfleet.chat.grammar.formats import FORMLESS
from chatfleet.chat.grammar.json_text import COMMA, INTEGER, NUMBER
from chatfleet.chat.grammar.matching import matches
from chatfleet.chat.grammar.nodes import (
    EMPTY,
    NOTHING,
    Grammar,
    Node,
    Reference,
    choice,
    is_nullable,
    join,
    optional,
    repeated,
    text,
    token,
)
from chatfleet.chat.grammar.numbers import FLOAT_DIGITS, integers, multiples, numbers
from chatfleet.chat.grammar.regex import search
from chatfleet.chat.grammar.schema_merge import Schema, all_of
from chatfleet.chat.grammar.strings import TextConditions, any_of, fixed_key, key, string


class TypeCompiler(Protocol):
    """What the types need of the compiler of the whole schema."""

    _param: str | None
    rules: dict[str, Node]

    def refused(self, keyword: str, why: str, place: str) -> Exception: ...

    def invalid(self, what: str, place: str) -> Exception: ...

    def rule_name(self) -> str: ...

    def shared(self, node: Node) -> Node: ...

    def node(self, schema: Any, place: str) -> Node: ...

    def language(self, keyword: str, wanted: str, place: str) -> Node: ...


def text_string(compiler: TypeCompiler, schema: Schema, place: str) -> Node:
    languages = [compiler.language("pattern", pattern, place) for pattern in schema.get("patterns", [])]
    for name in schema.get("formats", []):
        if name not in FORMLESS:
            languages.append(compiler.language("format", name, place))
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    if high is not None and low > high:
        return NOTHING
    if low == 1 and not all(is_nullable(language, {}) for language in languages):
        low = 0
    node, rules = string(TextConditions(languages, low, high), compiler.rule_name())
    compiler.rules.update(rules)
    return node


def number(compiler: TypeCompiler, schema: Schema, place: str, *, is_integer: bool) -> Node:
    if not schema:
        return INTEGER if is_integer else NUMBER
    low, high = _bounds(schema)
    largest = 10 ** (limits.INTEGER_DIGITS if is_integer else FLOAT_DIGITS) - 1
    for names, is_beyond in (
        (_LOWER, low is not None and low[0] > largest),
        (_UPPER, high is not None and high[0] < -largest),
    ):
        if is_beyond:
            keyword = ", ".join(name for name, _ in names if name in schema)
            raise compiler.refused(keyword, f"numbers are written here up to {largest} with bounds", place)
    step = Decimal(str(schema["multipleOf"])) if "multipleOf" in schema else None
    try:
        if step is None and not is_integer:
            return token(numbers(low, high))
        if step is not None and step <= 0:
            raise compiler.invalid("`multipleOf` must be above 0", place)
        if step is not None and step != int(step):
            if not is_integer or (1 / step) != int(1 / step):
                raise compiler.refused("multipleOf", f"{step} is no integer, and fractions are not exact", place)
            step = None
        least = None if low is None else _next_integer(low, 1)
        most = None if high is None else _next_integer(high, -1)
        if step is None:
            return token(integers(least, most))
        return token(multiples(int(step), least, most))
    except ValueError as exc:
        raise compiler.refused(", ".join(schema), str(exc), place) from exc


def _bounds(schema: Schema) -> tuple[tuple[Decimal, bool] | None, tuple[Decimal, bool] | None]:
    """The largest lower and the smallest upper bound, each with whether it is itself within."""
    lows = [(Decimal(str(schema[name])), inside) for name, inside in _LOWER if name in schema]
    highs = [(Decimal(str(schema[name])), inside) for name, inside in _UPPER if name in schema]
    low = max(lows, key=lambda bound: (bound[0], not bound[1]), default=None)
    high = min(highs, key=lambda bound: (bound[0], bound[1]), default=None)
    return low, high


_LOWER = (("minimum", True), ("exclusiveMinimum", False))
_UPPER = (("maximum", True), ("exclusiveMaximum", False))


def _next_integer(bound: tuple[Decimal, bool], step: int) -> int:
    """The first integer from the bound on, upwards or downwards."""
    value, is_within = bound
    whole = int(value.to_integral_value("ROUND_CEILING" if step > 0 else "ROUND_FLOOR"))
    return whole + step if whole == value and not is_within else whole


def array(compiler: TypeCompiler, schema: Schema, place: str) -> Node:
    rest = schema.get("items", True)
    head = schema.get("prefixItems", [])
    if isinstance(rest, list):
        raise compiler.refused("items", "a list of schemas is `prefixItems` now", place)
    low, high = schema.get("minItems", 0), schema.get("maxItems")
    if high is not None and high < low:
        return NOTHING
    head = head if high is None else head[:high]
    item = compiler.shared(compiler.node(rest, f"{place}/items")) if high is None or high > len(head) else NOTHING
    inner = (
        repeated(join([COMMA, item]), max(0, low - len(head)), None if high is None else max(0, high - len(head)))
        if head
        else _separated(item, low, high)
    )
    for index in range(len(head) - 1, -1, -1):
        node = compiler.node(head[index], f"{place}/prefixItems/{index}")
        inner = join([node if index == 0 else join([COMMA, node]), inner])
        if index >= low:
            inner = optional(inner)
    return join([token(text("[")), inner, token(text("]"))])


def _separated(item: Node, low: int, high: int | None) -> Node:
    if high == 0:
        return EMPTY
    inner = join([item, repeated(join([COMMA, item]), max(0, low - 1), None if high is None else high - 1)])
    return optional(inner) if low == 0 else inner


def object_of(compiler: TypeCompiler, schema: Schema, place: str) -> Node:
    patterns = {
        pattern: search(pattern, param=compiler._param, where=f"`patternProperties` at {place} of the schema")
        for pattern in schema.get("patternProperties", {})
    }
    additional = schema.get("additionalProperties", True)
    required = schema.get("required", [])
    properties = dict(schema.get("properties", {}))
    for name in required:
        if name not in properties:
            matching = [schema["patternProperties"][p] for p, node in patterns.items() if matches(Grammar(node), name)]
            properties[name] = True if matching else additional
    members: list[tuple[Node, bool]] = []
    for name, value_schema in properties.items():
        own = [schema["patternProperties"][p] for p, node in patterns.items() if matches(Grammar(node), name)]
        value = compiler.node(all_of(value_schema, *own), f"{place}/properties/{_pointer(name)}")
        if value == NOTHING:
            if name in required:
                return NOTHING
            continue
        members.append((join([fixed_key(name), value]), name in required))
    if _says_all(schema, members):
        additional = False
    extra = compiler.shared(_other_members(compiler, schema, patterns, additional, properties, place))
    low, high = _counts(compiler, schema, members, extra, place)
    return join([token(text("{")), _members(compiler, members, extra, low, high), token(text("}"))])


def _says_all(schema: Schema, members: list[tuple[Node, bool]]) -> bool:
    """Whether a schema that names properties, and says nothing of others, is taken to want no others: it would be a
    weak model's way not to come to an end."""
    is_open = "additionalProperties" in schema or not schema.get("properties")
    return not is_open and schema.get("minProperties", 0) <= len(members)


def _pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _other_members(
    compiler: TypeCompiler,
    schema: Schema,
    patterns: dict[str, Node],
    additional: Any,
    properties: dict[str, Any],
    place: str,
) -> Node:
    """One member that is not among the properties."""
    names = [any_of(properties)] if properties else []
    ways = []
    automata = {pattern: of_node(node) for pattern, node in patterns.items()}
    for index, (pattern, node) in enumerate(patterns.items()):
        for other in list(patterns)[index + 1 :]:
            if not is_empty(intersection(automata[pattern], automata[other])):
                raise compiler.refused("patternProperties", f"a name can match {pattern!r} and {other!r}", place)
        value = compiler.node(schema["patternProperties"][pattern], f"{place}/patternProperties/{_pointer(pattern)}")
        name, rules = key(TextConditions([node], barred=names), compiler.rule_name())
        compiler.rules.update(rules)
        ways.append(join([name, value]))
    if additional is not False:
        value = compiler.node(additional, f"{place}/additionalProperties")
        name, rules = key(TextConditions(barred=[*names, *patterns.values()]), compiler.rule_name())
        compiler.rules.update(rules)
        ways.append(join([name, value]))
    return choice(ways)


def _counts(
    compiler: TypeCompiler, schema: Schema, members: list[tuple[Node, bool]], extra: Node, place: str
) -> tuple[int, int | None]:
    """How many of the other members there must and may be."""
    fixed = sum(1 for _, is_required in members if is_required)
    low, high = schema.get("minProperties", 0), schema.get("maxProperties")
    if low <= fixed and (high is None or (extra == NOTHING and high >= len(members))):
        return 0, None
    if len(members) > fixed:
        raise compiler.refused(
            "minProperties" if low > fixed else "maxProperties", "some of the properties are optional", place
        )
    if low - fixed > 1:
        raise compiler.refused("minProperties", "other names than the properties' could be repeated", place)
    return max(0, low - fixed), None if high is None else high - fixed


def _members(compiler: TypeCompiler, members: list[tuple[Node, bool]], extra: Node, low: int, high: int | None) -> Node:
    """Members in their order, with commas between those that are there, then the others."""
    if high is not None and high < low:
        return NOTHING
    behind = repeated(join([COMMA, extra]), low, high)
    first = _separated(extra, low, high) if extra != NOTHING else (EMPTY if low == 0 else NOTHING)
    has_choice = bool(members) and not members[0][1]
    for member, is_required in reversed(members):
        member = compiler.shared(member) if has_choice else member
        start = join([member, behind])
        first = start if is_required else choice([start, first])
        again = join([COMMA, member])
        behind = join([again if is_required else optional(again), behind])
        if has_choice:
            name = compiler.rule_name()
            compiler.rules[name] = behind
            behind = Reference(name)
    return first
