"""Random calls in each format, random splits, and texts that no model should write."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfleet.chat.formats import REASONING_FORMATS, TOOL_FORMATS, make_parser
from support.outputs import merged, parse

SPACE = " \t\r\n"
TAGS = sorted({tag for known in TOOL_FORMATS.values() for tag in (*known.openers, *known.visible) if len(tag) > 1})
CLOSING = ("</arg_value>", "</parameter>", "</function>", "</tool_call>", "<parameter=")

names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_-]{0,20}", fullmatch=True)
characters = st.characters(codec="utf-8")
strings = st.lists(
    st.one_of(st.text(characters, max_size=5), st.sampled_from([*TAGS, '"', "\\", "\\n", "\n", "'", "{", "]", "\0"])),
    max_size=5,
).map("".join)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), strings
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(strings, inner, max_size=3)),
    max_leaves=8,
)
arguments = st.dictionaries(strings, values, max_size=4)
layouts: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"ensure_ascii": False}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False, "indent": 1}]
)
plain = st.text(st.sampled_from("aé .\n\t🚢0"), max_size=8)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    ends = sorted({cut % (len(text) + 1) for cut in cuts} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def text_around(before: str, calls: list[dict[str, Any]], after: str) -> list[dict[str, Any]]:
    """The rule for white space next to calls."""
    expected = [{"content": before.rstrip(SPACE)}, *calls, {"content": after.strip(SPACE)}]
    if after.strip(SPACE):
        expected[-1] = {"content": after.lstrip(SPACE)}
    return [event for event in expected if event.get("content") != ""]


def shaped(name: str, calls: list[tuple[str, str]]) -> str:
    shape = TOOL_FORMATS[name].shape
    written = [f"{shape.before_name}{called}{shape.after_name}{text}{shape.after_arguments}" for called, text in calls]
    return f"{shape.begin}{shape.separator.join(written)}{shape.end}"


@pytest.mark.parametrize("name", TOOL_FORMATS)
@settings(max_examples=20, deadline=None)
@given(
    calls=st.lists(st.tuples(names, arguments, layouts), min_size=1, max_size=3),
    before=plain,
    after=plain,
    cuts=st.lists(st.integers(0, 10**6), max_size=12),
)
def test_reads_what_constrained_decoding_writes(
    name: str,
    calls: list[tuple[str, dict[str, Any], dict[str, Any]]],
    before: str,
    after: str,
    cuts: list[int],
) -> None:
    written = [(called, json.dumps(value, **layout)) for called, value, layout in calls]
    if name == "openai":
        before = after = ""
    text = before + shaped(name, written) + after
    reader = make_parser(None, TOOL_FORMATS[name], dict.fromkeys([called for called, _ in written]), opened=False)
    expected = [{"call": called, "arguments": text} for called, text in written]
    assert merged(parse(reader, pieces_of(text, cuts))) == text_around(before, expected, after)


def schema_of(value: Any) -> dict[str, Any]:
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", list: "array"}
    return {"type": kinds.get(type(value), "object")}


def bare(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def glm(called: str, value: dict[str, Any]) -> str:
    pairs = [f"<arg_key>{key}</arg_key>\n<arg_value>{bare(item)}</arg_value>\n" for key, item in value.items()]
    return f"<tool_call>{called}\n{''.join(pairs)}</tool_call>"


def qwen3_coder(called: str, value: dict[str, Any]) -> str:
    pairs = [f"<parameter={key}>\n{bare(item)}\n</parameter>\n" for key, item in value.items()]
    return f"<tool_call>\n<function={called}>\n{''.join(pairs)}</function>\n</tool_call>"


@pytest.mark.parametrize(("name", "write"), [("glm45", glm), ("qwen3_coder", qwen3_coder)])
@settings(max_examples=40, deadline=None)
@given(
    called=names,
    value=st.dictionaries(names, values, max_size=4),
    before=plain,
    cuts=st.lists(st.integers(0, 10**6), max_size=12),
)
def test_reads_values_between_tags_by_the_schema(
    name: str, write: Callable[[str, dict[str, Any]], str], called: str, value: dict[str, Any], before: str, cuts: Any
) -> None:
    if any(tag in json.dumps(value, ensure_ascii=False) for tag in CLOSING):
        return
    text = before + write(called, value)
    functions = {called: {"properties": {key: schema_of(item) for key, item in value.items()}}}
    events = merged(parse(make_parser(None, TOOL_FORMATS[name], functions, opened=False), pieces_of(text, cuts)))
    assert (events[-1]["call"], json.loads(events[-1]["arguments"])) == (called, value)
    assert events[:-1] == text_around(before, [], "")


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(names, st.dictionaries(names, values, max_size=3)), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 10**6), max_size=12),
)
def test_reads_python_calls(calls: list[tuple[str, dict[str, Any]]], cuts: list[int]) -> None:
    written = [f"{called}({', '.join(f'{key}={item!r}' for key, item in value.items())})" for called, value in calls]
    text = f"[{', '.join(written)}]"
    reader = make_parser(None, TOOL_FORMATS["pythonic"], dict.fromkeys([called for called, _ in calls]), opened=False)
    events = merged(parse(reader, pieces_of(text, cuts)))
    assert [(event["call"], json.loads(event["arguments"])) for event in events] == calls


sloppy = st.recursive(
    scalars.map(lambda value: json.dumps(value, ensure_ascii=False).replace("\\n", "\n").replace("\\u0000", "\0")),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda items: f"[{','.join(items)},\n]"),
        st.dictionaries(strings.map(json.dumps), inner, min_size=1, max_size=3).map(
            lambda items: "{" + ", ".join(f"{key}:{item}" for key, item in items.items()) + " , }"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=sloppy, cuts=st.lists(st.integers(0, 10**6), max_size=12))
def test_arguments_are_json_where_the_model_is_sloppy(value: str, cuts: list[int]) -> None:
    text = f'<tool_call>{{"name": "f", "arguments": {{"a": {value},}}, }}</tool_call>'
    reader = make_parser(None, TOOL_FORMATS["hermes"], {"f": None}, opened=False)
    (event,) = merged(parse(reader, pieces_of(text, cuts)))
    assert list(json.loads(event["arguments"])) == ["a"]


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.tuples(st.sampled_from("abcd"), scalars.map(bare)), max_size=4),
    ends=st.lists(st.sampled_from(["</parameter>", "\n</parameter>\n", "\n"]), min_size=4, max_size=4),
    last=st.sampled_from(["</function>\n</tool_call>", "</tool_call>", "</function>"]),
    cuts=st.lists(st.integers(0, 10**6), max_size=12),
)
def test_arguments_are_json_where_end_tags_are_missing(values: Any, ends: list[str], last: str, cuts: Any) -> None:
    if any(tag in item for _, item in values for tag in TAGS):
        return
    pairs = [f"<parameter={key}>{item}{end}" for (key, item), end in zip(values, ends, strict=False)]
    functions = {"f": {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {"enum": ["x", 1]}}}}
    reader = make_parser(None, TOOL_FORMATS["qwen3_coder"], functions, opened=False)
    (event,) = merged(parse(reader, pieces_of(f"<tool_call>\n<function=f>\n{''.join(pairs)}{last}", cuts)))
    assert set(json.loads(event["arguments"])) == {key for key, _ in values}


soups = st.lists(
    st.one_of(
        st.sampled_from(TAGS),
        st.sampled_from(
            ["<think>", "</think>", '{"name": "f"', '"arguments": {', "}", "[", "]", "f", "(", ")", "=", '"']
        ),
        st.sampled_from(["\\", "\n", " ", ",", ";", ":", "```json", "'", "null", "1", "<", "\0", '{"name": "f", "']),
        st.text(characters, max_size=3),
    ),
    max_size=20,
).map("".join)


@pytest.mark.parametrize("name", TOOL_FORMATS)
@settings(max_examples=40, deadline=None)
@given(text=soups, opened=st.booleans())
def test_garbage_reads_the_same_however_it_is_split(name: str, text: str, opened: bool) -> None:
    def events(pieces: list[str]) -> list[dict[str, Any]]:
        functions = {"f": {"properties": {"a": {"type": "string"}, "b": {}}}}
        reasoning = REASONING_FORMATS["openai_gptoss" if name == "openai" else "granite"]
        return merged(parse(make_parser(reasoning, TOOL_FORMATS[name], functions, opened=opened), pieces))

    assert events([text]) == events(list(text))


@pytest.mark.parametrize("name", TOOL_FORMATS)
@settings(max_examples=40, deadline=None)
@given(text=soups)
def test_text_without_a_call_stays_as_it_is(name: str, text: str) -> None:
    events = merged(parse(make_parser(None, TOOL_FORMATS[name], {}, opened=False), [text]))
    if name != "openai" and not any("call" in event for event in events):
        assert events == ([{"content": text}] if text else [])


looks_like_calls = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *("<|channel|>analysis", "<|channel|>commentary", "<|start|>assistant", "<|message|>", "<|end|>", " "),
                *("to=functions.f", "to=f", " to=functions.f", "<|constrain|>json", "function", "f", "\n", "```json\n"),
                *("[f(a=1)]", "f(", '{"name": "f", "arguments": {}}', '{ "name" :"f","parameters":{}}', "functools"),
                *(
                    "f[ARGS]{}",
                    "<function=f>",
                    "</function>",
                    "f\n<arg_key>a</arg_key>",
                    "functions.f:0",
                    "{}",
                    "t",
                    "o=",
                ),
            ]
        ),
        st.sampled_from(TAGS),
        st.sampled_from(TAGS).map(lambda tag: tag[:-1]),
        st.text(characters, max_size=3),
    ),
    max_size=12,
).map("".join)


def without(bans: tuple[str, ...], text: str) -> str:
    while found := next((ban for ban in bans if ban in text), None):
        text = text.replace(found, found[1:])
    return text


@pytest.mark.parametrize("name", TOOL_FORMATS)
@settings(max_examples=150, deadline=None)
@given(text=looks_like_calls)
def test_text_without_what_is_banned_from_free_text_has_no_call(name: str, text: str) -> None:
    known = TOOL_FORMATS[name]
    free = without(known.free_text_bans, text)
    events = merged(parse(make_parser(None, known, {"f": None, "": None}, opened=False), [free]))
    assert not any("call" in event for event in events)


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_no_call_can_be_written_around_the_bans(name: str) -> None:
    known = TOOL_FORMATS[name]
    assert any(ban in known.shape.trigger for ban in known.free_text_bans)
    for spelling in SPELLINGS[name]:
        events = merged(parse(make_parser(None, known, {"f": None}, opened=False), [spelling]))
        assert [event["call"] for event in events if "call" in event] == ["f"]
        assert any(ban in spelling for ban in known.free_text_bans)


_KIMI_CALL = "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
_BARE = ['{ "name": "f", "parameters": {}}', "[f(zip=5)]", ' [ {"name": "f"}]', '<|python_tag|>{"name": "f"}']
SPELLINGS = {
    "openai": [
        *(" to=functions.f<|message|>{}", "<|channel|>analysis to=f<|message|>{}", "\tto=f<|message|>{}"),
        *("<|start|>assistant to=functions.f<|channel|>commentary<|message|>{}", "<|channel|>to=f<|message|>{}"),
    ],
    "kimi_k2": [_KIMI_CALL, f"<|tool_calls_section_begin|>\n{_KIMI_CALL}"],
    "deepseek_v3": ["<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}"],
    "deepseek_v31": ["<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}"],
    "mistral_v11": ['[TOOL_CALLS] [{"name": "f"}]', "[TOOL_CALLS]f{}"],
    "mistral": ['[TOOL_CALLS]{"name": "f"}', "[TOOL_CALLS]f[ARGS]{}"],
    "glm45": ["<tool_call>f\n</tool_call>", '<tool_call>{"name": "f"}'],
    "qwen3_coder": ["<function=f>\n</function>", '<tool_call>{"name": "f"}', "<tool_call> <function=f>\n</function>"],
    "granite": ['<tool_call>[{"name": "f"}]', '<|tool_call|>{"name": "f"}'],
    "phi4_mini_json": [
        '<|tool_call|>[{"name": "f"}]',
        '<|tool_call|>functools[{"name": "f"}]',
        'functools[{"name": "f"}',
    ],
    "hermes": ['<tool_call>[{"name": "f"}]'],
    "pythonic": [*_BARE, "<|python_start|>[f()]<|python_end|>"],
    "llama3_json": _BARE,
}


def test_reasoning_of_harmony_without_its_ends_has_no_call() -> None:
    known = REASONING_FORMATS["openai_gptoss"]
    text = "a <|channel|>commentary to=functions.f<|message|>{} <|end|><|start|>assistant to=functions.f<|message|>{}"
    free = without(known.ends, text)
    reader = make_parser(known, TOOL_FORMATS["openai"], {"f": None}, opened=False)
    assert merged(parse(reader, [known.start + free])) == [{"reasoning": free}]


LONG = 100_000
HOSTILE = {
    "string": ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "' + "x\\n" * (LONG // 3) + '"}}</tool_call>'),
    "begun tags": ("hermes", "<tool_cal " * (LONG // 10)),
    "nested tags": ("hermes", "<tool_call>" * (LONG // 11)),
    "spaces": ("hermes", " " * LONG),
    "held arguments": ("hermes", '<tool_call>{"arguments": {"a": "' + "y" * LONG),
    "commas": ("hermes", '<tool_call>{"name": "f", "arguments": {' + "a , " * (LONG // 4)),
    "control characters": ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "' + "\\\n" * (LONG // 2)),
    "deep JSON": ("hermes", '<tool_call>{"name": "f", "arguments": ' + '{"a":[' * (LONG // 6)),
    "deep functions": ("hermes", '<tool_call>{"function":' + '{"function":' * (LONG // 12)),
    "huge name": ("hermes", '<tool_call>{"name": "' + "f" * LONG),
    "braces": ("llama3_json", "{" * LONG),
    "begun objects": ("llama3_json", '{"name" ' * (LONG // 8)),
    "brackets": ("pythonic", "[f(a=" + "[" * LONG),
    "huge header": ("mistral_v11", "[TOOL_CALLS]" + "f" * LONG),
    "sections": ("kimi_k2", "<|tool_calls_section_begin|>" * (LONG // 28)),
    "value": ("glm45", "<tool_call>f\n<arg_key>a</arg_key><arg_value>" + "x</arg_" * (LONG // 7)),
    "values": ("qwen3_coder", "<function=f>" + "<parameter=a>\n1\n</parameter>" * (LONG // 28)),
    "channels": ("openai", "<|channel|>analysis<|message|>" + "x<|en" * (LONG // 5)),
}


QUICK = ("string", "held arguments", "value")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.long) for case in HOSTILE]
)
def test_long_texts_take_time_in_proportion(case: str) -> None:
    """A quadratic reader takes minutes for this; the bound leaves room for a busy machine."""
    name, text = HOSTILE[case]
    reader = make_parser(None, TOOL_FORMATS[name], {"f": None}, opened=False)
    started = time.process_time()
    by_character = merged(parse(reader, list(text)))
    assert time.process_time() - started < 8
    assert by_character == merged(parse(make_parser(None, TOOL_FORMATS[name], {"f": None}, opened=False), [text]))
