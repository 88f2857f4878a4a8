"""What models wrote, in each format: read whole, in two pieces and one character at a time."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatfleet.chat.events import CallArguments, CallBegin, Content, OutputEvent, OutputParser
from chatfleet.chat.formats import REASONING_FORMATS, TOOL_FORMATS, make_parser
from support.outputs import merged, parse

OUTPUTS = Path(__file__).parents[1] / "data" / "outputs"
PATHS = sorted(OUTPUTS.glob("*/*.json"))


def parser(output: dict[str, Any]) -> OutputParser:
    return make_parser(
        REASONING_FORMATS[output["reasoning"]] if output["reasoning"] else None,
        TOOL_FORMATS[output["tools"]] if output["tools"] else None,
        output["functions"],
        opened=output["opened"],
    )


def test_every_format_has_recorded_outputs() -> None:
    used = {json.loads(path.read_text())[kind] for path in PATHS for kind in ("tools", "reasoning")}
    assert used >= set(TOOL_FORMATS) | set(REASONING_FORMATS)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_reads_what_a_model_wrote_however_it_is_split(path: Path) -> None:
    output = json.loads(path.read_text())
    text, events = output["text"], output["events"]
    assert merged(parse(parser(output), [text])) == events
    assert merged(parse(parser(output), list(text))) == events
    for at in range(len(text) + 1):
        assert merged(parse(parser(output), [text[:at], text[at:]])) == events, at


def events_by_piece(name: str, pieces: list[str], functions: dict[str, Any]) -> list[list[OutputEvent]]:
    reader = make_parser(None, TOOL_FORMATS[name], functions, opened=False)
    return [reader.feed(piece) for piece in pieces] + [reader.finish()]


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("hermes", ['<tool_call>\n{"name": "f"', ', "arguments": {"a": "x', "y", '"}', "}\n</tool_call>"]),
        ("llama3_json", ['{"name": "f"', ', "parameters": {"a": "x', "y", '"}', "}"]),
        ("mistral_v11", ["[TOOL_CALLS]f[ARGS]", '{"a": "x', "y", '"}', " "]),
        ("kimi_k2", ["<|tool_call_begin|>f:0<|tool_call_argument_begin|>", '{"a": "x', "y", '"}', "<|tool_call_end|>"]),
        ("deepseek_v31", ["<｜tool▁call▁begin｜>f<｜tool▁sep｜>", '{"a": "x', "y", '"}', "<｜tool▁call▁end｜>"]),
        ("deepseek_v3", ["<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json", '\n{"a": "x', "y", '"}', "\n```"]),
        ("openai", ["<|channel|>commentary to=functions.f<|message|>", '{"a": "x', "y", '"}', "<|call|>"]),
    ],
)
def test_gives_the_name_and_each_fragment_as_soon_as_they_come(name: str, pieces: list[str]) -> None:
    assert events_by_piece(name, pieces, {"f": None}) == [
        [CallBegin(0, "f")],
        [CallArguments(0, '{"a": "x')],
        [CallArguments(0, "y")],
        [CallArguments(0, '"}')],
        [],
        [],
    ]


@pytest.mark.parametrize(
    ("name", "pieces", "first"),
    [
        (
            "glm45",
            ["<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>", "x", 'y"', "</arg_value></tool_call>"],
            '{"a": "',
        ),
        ("qwen3_coder", ["<function=f>\n<parameter=a>\n", "x", 'y"', "\n</parameter></function>"], '{"a": "'),
        ("pythonic", ["[f(a=", '"x', 'y\\"', '")]'], '{"a": '),
    ],
)
def test_streams_strings_that_it_writes_as_json_itself(name: str, pieces: list[str], first: str) -> None:
    functions = {"f": {"properties": {"a": {"type": "string"}}}}
    begun, *rest = events_by_piece(name, pieces, functions)
    assert begun == [CallBegin(0, "f"), CallArguments(0, first)]
    fragments = ["".join(event.fragment for event in events if isinstance(event, CallArguments)) for events in rest]
    assert fragments[:2] in (["x", 'y\\"'], ['"x', 'y\\"'])
    assert json.loads(first + "".join(fragments)) == {"a": 'xy"'}


def test_shows_text_at_once_but_for_what_may_begin_a_call() -> None:
    reader = make_parser(None, TOOL_FORMATS["hermes"], {}, opened=False)
    assert reader.feed("a < b") == [Content("a < b")]
    assert reader.feed(" \n<tool") == []
    assert reader.feed("s> c") == [Content(" \n<tools> c")]
    assert reader.feed(" <tool_call>") == []
    assert reader.finish() == [Content(" <tool_call>")]


def test_all_is_content_without_formats() -> None:
    text = '<think>a</think>\n<tool_call>{"name": "f", "arguments": {}}</tool_call> '
    assert merged(parse(make_parser(None, None, {"f": None}, opened=False), list(text))) == [{"content": text}]


def test_harmony_calls_are_text_without_tools() -> None:
    reader = make_parser(REASONING_FORMATS["openai_gptoss"], None, {}, opened=False)
    text = "<|channel|>commentary to=functions.f<|message|>{}<|call|>"
    assert merged(parse(reader, [text])) == [{"content": "{}"}]
