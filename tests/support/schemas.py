"""Random JSON schemas out of all the keywords that grammars honour."""

from random import Random
from typing import Any

Schema = dict[str, Any]

_NAMES = ("name", "city", "tags", "value", "a b", 'q"uote', "naïve", "x-id", "n", "kind")
_PATTERNS = ("^[a-z]+$", "[0-9]{2}", "^(foo|ba[rz])?", "^\\w+-\\d{1,3}$", "end$", "^[^\\s,]{2,5}$", "^\\S+@\\S+\\.com$")
_FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "hostname", "uri", "duration")
_WORDS = ("red", "green", "", 'with "quotes"', "line\nbreak", "ünïcode", "日本", "a/b\\c")


def random_schema(seed: int) -> Schema:
    """A schema that some value satisfies, the same for the same seed. About one in four is recursive."""
    random = Random(seed)
    if random.random() < 0.25:
        return _recursive(random)
    return _schema(random, 0)


def _recursive(random: Random) -> Schema:
    where = random.choice(("$defs", "definitions"))
    reference = {"$ref": f"#/{where}/node"}
    more: Any = random.choice(
        (
            {"type": "array", "items": reference, "maxItems": 3},
            {"anyOf": [{"type": "null"}, reference]},
            {"type": "object", "additionalProperties": reference},
        )
    )
    node = {
        "type": "object",
        "properties": {"value": _schema(random, 2), "more": more},
        "required": random.choice((["value", "more"], ["value"], [])),
        "additionalProperties": False,
    }
    root = random.choice((reference, {"type": "array", "items": reference, "minItems": 1, "maxItems": 2}))
    return {**root, where: {"node": node}}


def _schema(random: Random, depth: int) -> Schema:
    makers = [_string, _string, _integer, _number, _boolean, _null, _enum, _const]
    if depth < 3:
        makers += [_object, _object, _object, _array, _array, _any_of, _one_of, _all_of, _several_types, _anything]
    made = random.choice(makers)(random, depth)
    if random.random() < 0.2:
        made |= {"title": "T", "description": "What it is."}
    return made


def _string(random: Random, depth: int) -> Schema:
    low = random.randint(0, 4)
    options: list[Schema] = [
        {},
        {"minLength": low},
        {"maxLength": random.randint(low, 12)},
        {"minLength": low, "maxLength": low + random.randint(0, 8)},
        {"pattern": random.choice(_PATTERNS)},
        {"pattern": random.choice(_PATTERNS[:3]), "maxLength": random.randint(6, 10)},
        {"format": random.choice(_FORMATS)},
    ]
    return {"type": "string", **random.choice(options)}


def _integer(random: Random, depth: int) -> Schema:
    low = random.randint(-200, 200)
    options: list[Schema] = [
        {},
        {"minimum": low},
        {"maximum": low},
        {"minimum": low, "maximum": low + random.randint(0, 5000)},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + random.randint(2, 50)},
        {"multipleOf": random.choice((1, 10, 100))},
        {"multipleOf": 7, "minimum": low, "maximum": low + 100},
    ]
    return {"type": "integer", **random.choice(options)}


def _number(random: Random, depth: int) -> Schema:
    low = random.randint(-2000, 2000) / 8
    options: list[Schema] = [
        {},
        {"minimum": low},
        {"exclusiveMaximum": low},
        {"minimum": low, "maximum": low + random.randint(1, 400) / 16},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + 0.5},
    ]
    return {"type": "number", **random.choice(options)}


def _boolean(random: Random, depth: int) -> Schema:
    return {"type": "boolean"}


def _null(random: Random, depth: int) -> Schema:
    return {"type": "null"}


def _anything(random: Random, depth: int) -> Schema:
    return {}


def _enum(random: Random, depth: int) -> Schema:
    values: list[Any] = [*_WORDS, 1, -2.5, True, None, {"k": [1, "x"]}, []]
    made: Schema = {"enum": random.sample(values, random.randint(1, 5))}
    strings = [value for value in made["enum"] if isinstance(value, str)]
    return {"type": "string", **made} if strings and random.random() < 0.5 else made


def _const(random: Random, depth: int) -> Schema:
    return {"const": random.choice((*_WORDS, 42, 0.5, False, None, ["a", {"b": 1}]))}


def _object(random: Random, depth: int) -> Schema:
    names = random.sample(_NAMES, random.randint(0, 5))
    made: Schema = {"type": "object", "properties": {name: _schema(random, depth + 1) for name in names}}
    made["required"] = [name for name in names if random.random() < 0.6]
    extra = random.random()
    if extra < 0.5:
        made["additionalProperties"] = False
    elif extra < 0.7:
        made["additionalProperties"] = _schema(random, depth + 1)
    elif extra < 0.8:
        made |= {"patternProperties": {"^p_": _schema(random, depth + 2)}, "additionalProperties": False}
    if not names and random.random() < 0.5:
        made |= {"additionalProperties": _schema(random, depth + 2), "maxProperties": 3, "minProperties": 1}
    return made


def _array(random: Random, depth: int) -> Schema:
    low = random.randint(0, 2)
    made: Schema = {"type": "array", "items": _schema(random, depth + 1)}
    if random.random() < 0.3:
        made["prefixItems"] = [_schema(random, depth + 1) for _ in range(random.randint(1, 3))]
        made["items"] = random.choice((False, made["items"]))
    made |= random.choice(({}, {"minItems": low}, {"maxItems": low + 1}, {"minItems": low, "maxItems": low + 2}))
    if made["items"] is False:
        made.pop("minItems", None)
    return made


def _any_of(random: Random, depth: int) -> Schema:
    return {"anyOf": [_schema(random, depth + 1) for _ in range(random.randint(1, 3))]}


def _one_of(random: Random, depth: int) -> Schema:
    if random.random() < 0.5:
        return {"oneOf": [_string(random, depth), _integer(random, depth), _object(random, depth + 1)]}
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "data": _schema(random, depth + 1)},
                "required": ["kind", "data"],
                "additionalProperties": False,
            }
            for kind in ("one", "two", "three")
        ]
    }


def _all_of(random: Random, depth: int) -> Schema:
    return {
        "allOf": [
            {"type": "object", "properties": {"a": _schema(random, depth + 1)}, "required": ["a"]},
            {"properties": {"b": _schema(random, depth + 1), "a": True}, "required": ["b"]},
        ]
    }


def _several_types(random: Random, depth: int) -> Schema:
    return {"type": random.sample(("string", "integer", "boolean", "null", "number"), random.randint(2, 3))}
