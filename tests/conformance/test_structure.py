"""Answers that have to be of a form, for every engine, as clients of a worker see them."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import pytest

from conformance.targets import Loadable
from support.processes import WorkerProcess
from support.wire import Json, chunks, failed, user

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CITY: Json = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "size": {"enum": ["small", "großartig", None]},
        "year": {"type": "integer", "minimum": 1200, "maximum": 1999},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "size", "year", "tags"],
    "additionalProperties": False,
}
TREE: Json = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"n": {"enum": [1, 2]}, "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["n", "left"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
FUNCTIONS = [
    {"name": "find_city", "parameters": CITY, "strict": True},
    {"name": "end", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
PARAMETERS: Any = {function["name"]: function["parameters"] for function in FUNCTIONS}


@pytest.fixture(scope="module")
def worker(loadable: Loadable) -> Iterator[WorkerProcess]:
    with WorkerProcess(*loadable.arguments(), ready_s=120.0) as process:
        yield process


@pytest.fixture
def http(worker: WorkerProcess) -> Iterator[httpx.Client]:
    with worker.http() as client:
        yield client
        assert client.get("/ready").status_code == 200


def post(http: httpx.Client, path: str = CHAT, **fields: Any) -> Json:
    prompt = {"messages": user("Tell me of a city.")} if path == CHAT else {"prompt": "A city: "}
    response = http.post(path, json={"max_tokens": 200, "temperature": 1.2, **prompt, **fields})
    assert response.status_code == 200, response.text
    assert "x-chatfleet-ignored" not in response.headers
    answer: Json = response.json()
    return answer


def schema(value: Json) -> Json:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "form", "schema": value, "strict": True}}
    }


def check(choice: Json, form: Json) -> None:
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["message"]["content"]), form)


def test_a_schema_holds_in_every_choice(http: httpx.Client) -> None:
    answer = post(http, **schema(CITY), n=3, seed=1)
    for choice in answer["choices"]:
        check(choice, CITY)
    assert len({choice["message"]["content"] for choice in answer["choices"]}) > 1


def test_a_schema_that_refers_to_itself_holds(http: httpx.Client) -> None:
    (choice,) = post(http, **schema(TREE))["choices"]
    if choice["finish_reason"] == "stop":
        check(choice, TREE)
    assert choice["message"]["content"].startswith('{"n":')


def test_it_holds_in_a_stream_and_with_log_probabilities(http: httpx.Client) -> None:
    fields = {"messages": user("A city?"), "max_tokens": 200, "stream": True, "logprobs": True, **schema(CITY)}
    parts = chunks(http.post(CHAT, json=fields))
    choices = [choice for part in parts for choice in part["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    jsonschema.validate(json.loads(text), CITY)
    tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == text


@pytest.mark.parametrize(
    ("structured", "pattern"),
    [
        ({"regex": r"[a-c]{2,4}-\d{3}"}, r"[a-c]{2,4}-\d{3}"),
        ({"choice": ["yes", "no", "vielleicht größer"]}, "yes|no|vielleicht größer"),
        (
            {"grammar": 'root ::= "<" word ("," word){2} ">"\nword ::= [xyz]{1,4} "🚢"?'},
            "<[xyz]{1,4}🚢?(,[xyz]{1,4}🚢?){2}>",
        ),
        ({"json_object": True}, r"\{.*"),
        (
            {
                "structural_tag": {
                    "type": "structural_tag",
                    "format": {
                        "type": "tag",
                        "begin": "<city>",
                        "content": {"type": "json_schema", "json_schema": {"enum": ["Oslo", "Rome"]}},
                        "end": "</city>",
                    },
                }
            },
            '<city>"(Oslo|Rome)"</city>',
        ),
    ],
    ids=["regex", "choice", "grammar", "json_object", "structural_tag"],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_vllms_forms_hold(http: httpx.Client, path: str, structured: Json, pattern: str) -> None:
    (choice,) = post(http, path, structured_outputs=structured)["choices"]
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    if choice["finish_reason"] == "stop" or "json_object" not in structured:
        assert re.fullmatch(pattern, text, re.DOTALL), text


def test_those_with_a_form_and_those_without_share_a_batch(http: httpx.Client) -> None:
    def ask(index: int) -> Json:
        fields = schema(CITY) if index % 2 else {"max_tokens": 20}
        (choice,) = post(http, seed=index, **fields)["choices"]
        return choice

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    for choice in answers[1::2]:
        check(choice, CITY)
    for choice in answers[::2]:
        assert choice["message"]["content"] and not choice["message"]["content"].startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "find_city"}}])
def test_calls_that_must_be_always_validate(http: httpx.Client, choice: Any) -> None:
    (answer,) = post(http, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)["choices"]
    (call,) = answer["message"]["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS[call["function"]["name"]])
    assert answer["finish_reason"] == ("tool_calls" if choice == "required" else "stop")
    if choice != "required":
        assert call["function"]["name"] == "find_city"


def test_several_calls_may_come_in_a_stream(http: httpx.Client) -> None:
    fields = {"messages": user("Cities?"), "stream": True, "tools": TOOLS, "tool_choice": "required"}
    parts = chunks(http.post(CHAT, json=fields))
    calls: dict[int, Json] = {}
    for call in (
        call for part in parts for choice in part["choices"] for call in choice["delta"].get("tool_calls", [])
    ):
        known = calls.setdefault(call["index"], {"arguments": ""})
        known |= {name: call[name] for name in ("id", "type") if name in call}
        known["name"] = call["function"].get("name", known.get("name"))
        known["arguments"] += call["function"]["arguments"]
    finished = parts[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert calls and list(calls) == list(range(len(calls)))
    for call in list(calls.values()) if finished else list(calls.values())[:-1]:
        jsonschema.validate(json.loads(call["arguments"]), PARAMETERS[call["name"]])


def test_what_no_grammar_can_say_is_refused_by_its_keyword(http: httpx.Client) -> None:
    fields = {"messages": user("x"), **schema({"type": "array", "items": {}, "contains": {"const": 1}})}
    error = failed(http.post(CHAT, json=fields), 400, param="response_format")
    assert "contains" in error["message"]
