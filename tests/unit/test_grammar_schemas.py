"""JSON schemas as grammars: each keyword, what is refused, and what random schemas let through."""

import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfleet.chat.grammar import (
    Grammar,
    from_ebnf,
    from_json_schema,
    is_complete,
    json_object,
    limits,
    matches,
    remaining,
)
from chatfleet.chat.grammar.budget import budget, tick
from chatfleet.core.errors import InvalidRequest, UnsupportedParameter
from support.schemas import random_schema
from support.sentences import random_sentence

CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER


def grammar_of(schema: Any) -> Grammar:
    return from_json_schema(schema, param="response_format")


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


KEYWORDS: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "null"}, ["null"], ["true", "nul", '"null"']),
    ({"type": "boolean"}, ["true", "false"], ["True", "1"]),
    ({"type": ["string", "null"]}, ["null", '"a"'], ["1"]),
    ({"type": "integer"}, ["0", "-7", "123456789012345678"], ["01", "-0", "1.0", "1e3", "1" * 19]),
    ({"type": "number"}, ["0", "-0.5", "1.25e-7", "3E+10"], [".5", "1.", "01", "1e999", "0." + "1" * 17]),
    ({"type": "string"}, ['""', r'"\n\"\\é😀"', r'"\u00e9\ud83d\ude00"'], ['"\n"', r'"\ud83d"', r'"\udc00"', '"\\x"']),
    ({"type": "integer", "minimum": -3, "maximum": 12}, ["-3", "0", "9", "12"], ["-4", "13", "120"]),
    ({"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 101}, ["10", "100"], ["9", "101"]),
    ({"type": "integer", "multipleOf": 10, "maximum": 50}, ["0", "-20", "50"], ["5", "60"]),
    ({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 30}, ["0", "14", "28"], ["15", "35"]),
    ({"type": "number", "minimum": 0.5, "exclusiveMaximum": 2}, ["0.5", "1", "1.99"], ["0.49", "2", "2.0", "1e0"]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', r'"\n😀c"', r'"\ud83d\ude00a"'], ['"a"', '"abcd"']),
    ({"type": "string", "pattern": "[0-9]{2}"}, ['"a12b"', '"12"'], ['"a1b"']),
    ({"type": "string", "pattern": "^[a-z]+$"}, ['"abc"'], ['"abC"', '""']),
    ({"type": "string", "pattern": "^a", "maxLength": 2}, ['"a"', '"ab"'], ['"b"', '"abc"']),
    ({"type": "string", "pattern": r'^"\n\\$'}, [r'"\"\n\\"'], [r'"\"n\\"']),
    ({"type": "string", "format": "date"}, ['"2024-12-31"'], ['"2024-13-01"', '"2024-02-30"']),
    ({"type": "string", "format": "ipv4", "maxLength": 8}, ['"1.2.3.45"'], ['"1.2.3.456"', '"256.1.1.1"']),
    ({"enum": ["a", 1, None, {"k": [1]}]}, ['"a"', "1", "null", '{"k": [1]}', '{"k":[1]}'], ['"b"', "2", '{"k" :[1]}']),
    ({"type": "string", "enum": ["a", 1]}, ['"a"'], ["1"]),
    ({"enum": ["aa", "b"], "pattern": "^a+$", "maxLength": 5}, ['"aa"'], ['"b"']),
    ({"enum": [{"b": 1, "a": 2, "c": [3]}], **closed({"a": {}, "b": {}, "c": {}})}, ['{"b":1,"a":2,"c":[3]}'], ["{}"]),
    (
        {"enum": [{"a": 1, "c": 2}, {"a": "x"}], "type": "object", "properties": {"a": {"type": "integer"}}},
        ['{"a":1,"c":2}'],
        ['{"a":"x"}'],
    ),
    ({"enum": [12345678901234567890, 1e20, 1.0, 2.5], "type": "integer"}, ["12345678901234567890", "1"], ["2.5"]),
    ({"enum": [1e-7, 0.3, -1], "type": "number", "minimum": 0, "multipleOf": 1e-7}, ["1e-07"], ["-1"]),
    ({"enum": [1, "a", None], "oneOf": [{"type": "string"}, {"type": ["null", "string"]}]}, ["null"], ['"a"', "1"]),
    (
        {"enum": [[1], [1, "x"]], "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "integer"}}},
        ["[1]"],
        ['[1,"x"]'],
    ),
    ({"const": "né\n"}, ['"né\\n"'], ['"ne"']),
    ({"anyOf": [{"type": "null"}, {"maxLength": 1, "type": "string"}]}, ["null", '"a"'], ['"ab"']),
    ({"type": "string", "anyOf": [{"maxLength": 1}, {"minLength": 3}]}, ['"a"', '"abc"'], ['"ab"', "1"]),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["1.5"]),
    ({"oneOf": [{"const": n} for n in range(800)]}, ["0", "799"], ["800"]),
    ({"allOf": [{"enum": [1, 2.0, True]}, {"enum": [2, 1.0]}]}, ["1", "2"], ["true"]),
    ({"type": "string", "format": "int32"}, ['"any"'], ["1"]),
    (
        {"type": "string", "format": "uuid4"},
        ['"f81d4fae-7dec-41d0-8765-00a0c91e6bf6"'],
        ['"f81d4fae-7dec-11d0-8765-00a0c91e6bf6"', '"f81d4fae-7dec-41d0-0765-00a0c91e6bf6"'],
    ),
    ({"type": "string", "format": "ipvanyaddress"}, ['"1.2.3.4"', '"::1"'], ['"1.2.3"']),
    (
        {"$id": "http://a.b/r", "$ref": "http://a.b/r#/$defs/s", "$defs": {"s": {"$id": "s", "type": "null"}}},
        ["null"],
        ["1"],
    ),
    ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, ["3", "5"], ["2", "6"]),
    (
        {"allOf": [closed({"a": {"type": "integer"}}), {"properties": {"a": {"minimum": 5}}}]},
        ['{"a":5}', "{}"],
        ['{"a":4}', '{"b":5}'],
    ),
    ({"type": "array", "items": {"type": "integer"}}, ["[]", "[1]", "[1,2, 3]"], ["[1,]", "[ 1]", "[1 ,2]", '["a"]']),
    ({"type": "array", "items": {"const": 1}, "minItems": 1, "maxItems": 2}, ["[1]", "[1,1]"], ["[]", "[1,1,1]"]),
    (
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False},
        ["[]", "[1]", "[1,2]"],
        ["[2]", "[1,2,3]"],
    ),
    (
        {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 3}, "minItems": 2, "maxItems": 3},
        ["[1,3]", "[1,3,3]"],
        ["[1]", "[1,3,3,3]", "[3,3]"],
    ),
    (
        closed({"a": {"const": 1}, "b": {"const": 2}}, required=["b"]),
        ['{"a": 1, "b": 2}', '{"b":2}'],
        ["{}", '{"a":1}'],
    ),
    (closed({}), ["{}"], ['{"a":1}', "{ }"]),
    (
        {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": {"type": "null"}},
        ["{}", '{"a":1}', '{"b":null}', '{"a":1,"aa":null,"":null}'],
        ['{"a":null}', '{"b":1}', r'{"\u0061":null}'],
    ),
    ({"type": "object", "required": ["z"]}, ['{"z":[1,{}]}', '{"z":1,"y":2}'], ["{}", '{"y":2}']),
    (
        closed({"x-a": {"maximum": 5}}, patternProperties={"^x-": {"type": "integer"}}),
        ['{"x-a":5}', '{"x-b":9,"x-c":1}'],
        ['{"x-a":6}', '{"y":1}'],
    ),
    ({"type": "object", "maxProperties": 1}, ["{}", '{"a":1}'], ['{"a":1,"b":2}']),
    (
        {
            "$ref": "#/$defs/tree",
            "$defs": {"tree": closed({"kids": {"items": {"$ref": "#/$defs/tree"}, "type": "array"}})},
        },
        ["{}", '{"kids":[{},{"kids":[]}]}'],
        ['{"kids":[1]}'],
    ),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 1}}, "title": "T"}, ["1"], ["2"]),
    (True, ["1", '{"a":[null,{"b":true}]}'], ["{a:1}", ""]),
]


@pytest.mark.parametrize(("schema", "fits", "misfits"), KEYWORDS, ids=lambda value: json.dumps(value)[:60])
def test_honours_each_keyword(schema: Any, fits: list[str], misfits: list[str]) -> None:
    grammar = grammar_of(schema)
    for text in fits:
        assert matches(grammar, text), text
        jsonschema.validate(json.loads(text), schema, format_checker=CHECKER)
    for text in misfits:
        assert not matches(grammar, text), text


@pytest.mark.parametrize(
    ("schema", "keyword", "place"),
    [
        ({"not": {}}, "not", "#"),
        (closed({"a": {"type": "array", "uniqueItems": True}}), "uniqueItems", "#/properties/a"),
        ({"items": {"contains": {}}, "type": "array"}, "contains", "#/items"),
        ({"if": {}}, "if", "#"),
        ({"dependentRequired": {}}, "dependentRequired", "#"),
        ({"requried": ["a"]}, "requried", "#"),
        ({"type": "string", "format": "regex"}, "format", "#"),
        ({"type": "string", "format": "e-mail"}, "format", "#"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern", "#"),
        ({"type": "string", "pattern": "foo", "maxLength": 5000}, "maxLength", "#"),
        ({"type": "number", "multipleOf": 0.01}, "multipleOf", "#"),
        ({"anyOf": [True, {"type": "integer", "multipleOf": 7}]}, "multipleOf", "#/anyOf/1"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf", "#"),
        ({"$ref": "https://example.com/schema"}, "$ref", "#"),
        ({"type": "object", "patternProperties": {"a": {}, "b": {}}}, "patternProperties", "#"),
        ({"type": "string", "nullable": True}, "nullable", "#"),
        ({"properties": {"a": {"$id": "http://x/a", "$ref": "#/$defs/s"}}}, "$id", "#/properties/a"),
        ({"$ref": "#/$defs/q/$defs/s", "$defs": {"q": {"$id": "q", "$defs": {"s": True}}}}, "$id", "#"),
        ({"$ref": "#name"}, "anchor", "#"),
        ({"type": "number", "minimum": 1e16}, "minimum", "#"),
        ({"type": "integer", "exclusiveMaximum": -(10**19)}, "exclusiveMaximum", "#"),
        ({"type": "integer", "multipleOf": 10**20}, "multipleOf", "#"),
        (
            {
                "allOf": [
                    {"patternProperties": {"^f": {}}, "additionalProperties": False},
                    {"properties": {"foo": {}}},
                ]
            },
            "patternProperties",
            "#",
        ),
    ],
)
def test_refuses_by_name_and_place_what_no_grammar_can_honour(schema: Any, keyword: str, place: str) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        grammar_of(schema)
    assert refusal.value.param == "response_format"
    assert f"`{keyword}" in refusal.value.message or keyword in refusal.value.message
    assert f"at {place} of the schema" in refusal.value.message


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        5,
        {"type": "strin"},
        {"type": [["string"]]},
        {"type": []},
        {"$ref": ["#"]},
        {"properties": []},
        {"minLength": -1},
        {"enum": []},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "integer", "enum": ["a"]},
        {"const": "\ud800"},
        {"minimum": float("nan")},
        {"type": "array", "maxItems": 10**9},
        {"enum": [str(number) for number in range(5000)]},
        {"description": "x" * 300_000},
        nested(100),
        nested(900),
        {"$ref": "#/$defs/d0", "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)}},
    ],
    ids=lambda schema: json.dumps(schema)[:60],
)
def test_refuses_what_is_no_schema_or_too_large(schema: Any) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        grammar_of(schema)
    assert refusal.value.param == "response_format"


def test_takes_schemas_with_hundreds_of_optional_properties_and_deep_nesting() -> None:
    wide = grammar_of(closed({f"p{number}": {"type": "integer"} for number in range(300)}))
    assert matches(wide, '{"p3":1, "p299":2}')
    assert not matches(wide, '{"p299":2,"p3":1}')
    assert matches(grammar_of(nested(60)), "[" * 60 + '"a"' + "]" * 60)


FORMS = {
    "email": ["a@163.com", "o'x+y@b.co.uk"],
    "hostname": ["3m.com", "localhost"],
    "uri": ["http://127.0.0.1:8000/x", "mailto:a@b.c", "urn:x:y", "https://u:p@h.com:65535/a?x=1#f", "file:///etc/x"],
    "uri-reference": ["foo/bar", "../x", "/a", "#f", "?q", "//h.com/x", "a.html"],
    "date": ["2024-02-29", "2000-02-29"],
    "duration": ["P1Y2M3DT4H5M6S", "PT5M", "P3W"],
    "ipv6": ["::", "::1", "2001:db8::1", "fe80::1:2:3:4", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::ffff:1.2.3.4"],
}
NO_FORMS = {
    "date": ["2023-02-29", "1900-02-29"],
    "duration": ["P", "P1YT", "P1Y2D"],
    "ipv6": ["1:2:3:4:5:6:7", "1::2::3", "1:2:3:4:5:6:7:8::"],
    "uri": ["foo", "http://a:65536/"],
}


def test_formats_take_what_is_common_and_nothing_that_does_not_validate() -> None:
    for name in ("date", "time", "date-time", "json-pointer", "uuid", *FORMS):
        schema = {"type": "string", "format": name}
        grammar, random = grammar_of(schema), Random(name)
        validator = jsonschema.Draft202012Validator(schema, format_checker=CHECKER)
        for value in [*FORMS.get(name, []), *(json.loads(random_sentence(grammar, random)) for _ in range(30))]:
            assert matches(grammar, json.dumps(value, ensure_ascii=False)), value
            validator.validate(value)
        assert not any(matches(grammar, json.dumps(value)) for value in NO_FORMS.get(name, [])), name


def chain(rules: int, *, behind: str) -> str:
    return "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1} {behind}" for n in range(rules)) + f'\nr{rules} ::= "z"'


TAGGED = [closed({**{f"p{n}": {} for n in range(9)}, "k": {"const": k}}, required=["k"]) for k in range(16)]


@pytest.mark.parametrize(
    "compiled",
    [
        lambda: grammar_of({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(900)}}),
        lambda: grammar_of({"type": "object", "properties": {f"p{n}": {"const": n} for n in range(1100)}}),
        lambda: grammar_of({"oneOf": [{"enum": [f"{n}_{m}" for m in range(60)]} for n in range(60)]}),
        lambda: grammar_of({"oneOf": TAGGED}),
        lambda: grammar_of({"allOf": [{"enum": list(range(3000))}, {"enum": list(range(2000, 5000))}]}),
        lambda: grammar_of({"enum": ["ab" * 9 + str(n) for n in range(3000)], "pattern": "^(a|b|ab)*[0-9]*$"}),
        lambda: from_ebnf(chain(3000, behind='| "x"'), param=None),
        lambda: from_ebnf(chain(4000, behind='"x"'), param=None),
        lambda: from_ebnf(chain(1500, behind='| "x"') + " | r0", param=None),
    ],
    ids=["properties", "constants", "oneOf", "tagged", "allOf", "pattern", "units", "chain", "circle"],
)
def test_large_sources_take_little_time(compiled: Callable[[], Grammar]) -> None:
    with budget("response_format"):
        assert compiled().root


def test_what_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_COMPILE_S", 0.2)
    start = time.thread_time()
    with (
        pytest.raises(InvalidRequest, match=r"more than 0\.2 s to compile") as refusal,
        budget("tools"),
        budget("other"),
    ):
        grammar_of({"type": "string", "pattern": "^(a|b)*a(a|b){6}$", "minLength": 3})
    assert refusal.value.param == "tools"
    assert time.thread_time() - start < 2
    tick(10**9)
    with pytest.raises(InvalidRequest, match="steps"), budget("tools"):
        tick(10**9)


def test_a_schema_that_stands_for_itself_adds_nothing() -> None:
    grammar = grammar_of({"anyOf": [{"$ref": "#"}, {"type": "null"}]})
    assert matches(grammar, "null") and not matches(grammar, "1")


def test_an_object_of_any_form_ends_with_its_brace() -> None:
    assert is_complete(json_object(), '{"a": [1, {"b": null}]}')
    assert not is_complete(json_object(), '{"a": [1')
    assert not matches(json_object(), "[1]")
    assert not matches(json_object(), '{"a":  1}')


def check_schema(seed: int) -> None:
    schema, random = random_schema(seed), Random(seed)
    grammar = grammar_of(schema)
    validator = jsonschema.Draft202012Validator(schema, format_checker=CHECKER)
    for _ in range(3):
        text = random_sentence(grammar, random)
        validator.validate(json.loads(text))
        assert matches(grammar, text)
        cut = random.randint(0, len(text))
        assert matches(remaining(grammar, text[:cut]), text[cut:])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_what_random_schemas_let_through_validates(seed: int) -> None:
    check_schema(seed)


@pytest.mark.long
def test_what_500_random_schemas_let_through_validates() -> None:
    for seed in range(500):
        check_schema(seed)
