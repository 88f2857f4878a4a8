"""Tools and forms over HTTP where it does not matter what the model says; tests/conformance has the engines."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from support.processes import Endpoint, WorkerProcess
from support.wire import Json, failed, user

CHAT = "/v1/chat/completions"
PARAMETERS: Json = {"properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
"""Without a type, as many have them."""


def tool(name: str = "f", **fields: Any) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS, **fields}}


@pytest.fixture
def http(simulated_endpoint: Endpoint) -> Iterator[httpx.Client]:
    with simulated_endpoint.http() as client:
        yield client


@pytest.fixture(scope="module")
def unparsed() -> Iterator[WorkerProcess]:
    with WorkerProcess("--engine", "simulated", "--tool-parser", "none") as worker:
        yield worker


def answer(http: httpx.Client, **fields: Any) -> Json:
    response = http.post(CHAT, json={"messages": user("hi"), "max_tokens": 400, **fields})
    assert response.status_code == 200, response.text
    choice: Json = response.json()["choices"][0]
    return choice


@pytest.mark.parametrize("seed", range(4))
def test_arguments_are_an_object_though_the_parameters_do_not_say_so(http: httpx.Client, seed: int) -> None:
    choice = answer(http, tools=[tool()], tool_choice="required", parallel_tool_calls=False, seed=seed, temperature=1.5)
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Rome")
    assert choice["message"]["content"] is None


def test_parameters_of_another_type_are_refused(http: httpx.Client) -> None:
    request = {"messages": user("hi"), "tools": [tool(parameters={"type": "string"})], "tool_choice": "required"}
    assert "'f'" in failed(http.post(CHAT, json=request), 400, param="tools")["message"]


def test_a_call_that_runs_out_of_tokens_is_cut_and_says_so(http: httpx.Client) -> None:
    choice = answer(http, tools=[tool()], tool_choice="required", max_tokens=45)
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "f"


def test_where_calls_stay_text_none_can_be_demanded(unparsed: WorkerProcess) -> None:
    with unparsed.http() as http:
        for fields in ({"tools": [tool()], "tool_choice": "required"}, {"tools": [tool(strict=True)]}):
            for stream in (False, True):
                request = {"messages": user("hi"), "stream": stream, **fields}
                failed(http.post(CHAT, json=request), 400, param="tools", code="unsupported_parameter")
        assert answer(http, tools=[tool()])["message"]["content"]
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"const": "x"}}}
        assert answer(http, tools=[tool()], response_format=form)["message"]["content"] == '"x"'


def test_two_ways_to_say_a_form_are_refused(http: httpx.Client) -> None:
    fields: Json = {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}
    failed(http.post(CHAT, json={"messages": user("hi"), **fields}), 400, param="structured_outputs")
    form = {"type": "json_object", "json_schema": {"name": "s", "schema": {}}}
    failed(http.post(CHAT, json={"messages": user("hi"), "response_format": form}), 400, param="response_format")


@pytest.mark.parametrize(
    ("structured", "param"),
    [
        ({"regex": "(?=a)"}, "structured_outputs.regex"),
        ({"json": "{"}, "structured_outputs.json"),
        ({"json": {"type": "string", "pattern": "^(a|b)*a(a|b){12}$", "minLength": 3}}, "structured_outputs.json"),
        ({"choice": [str(n) for n in range(6000)]}, "structured_outputs.choice"),
        ({"grammar": "root ::= missing"}, "structured_outputs.grammar"),
        ({"regex": "a", "choice": ["a"]}, "structured_outputs"),
    ],
)
def test_a_form_that_cannot_be_is_refused_by_its_field_and_holds_up_nobody(
    http: httpx.Client, structured: Json, param: str
) -> None:
    request = {"messages": user("hi"), "max_tokens": 5, "structured_outputs": structured}
    with ThreadPoolExecutor(4) as pool:
        refused = [pool.submit(http.post, CHAT, json=request) for _ in range(3)]
        plain = pool.submit(answer, http, max_tokens=5)
        assert plain.result()["message"]["content"]
        for response in refused:
            failed(response.result(), 400, param=param)


@pytest.mark.parametrize("text", ["Once upon", "end", "|", "im_", "\n", "two  ", "<|im_end|"])
def test_a_final_message_goes_on_where_it_ends(http: httpx.Client, text: str) -> None:
    messages = [*user("hi"), {"role": "assistant", "content": text}]
    prompt = f"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{text}"
    count = http.post("/v1/tokenize", json={"prompt": prompt}).json()["count"]
    request = {"messages": messages, "max_tokens": 1, "continue_final_message": True}
    assert http.post(CHAT, json=request).json()["usage"]["prompt_tokens"] == count
    request |= {"add_generation_prompt": True}
    failed(http.post(CHAT, json=request), 400, param="add_generation_prompt")


def test_without_a_generation_prompt_it_ends_with_the_messages(http: httpx.Client) -> None:
    count = http.post("/v1/tokenize", json={"prompt": "<|im_start|>user\nhi<|im_end|>\n"}).json()["count"]
    request = {"messages": user("hi"), "max_tokens": 1, "add_generation_prompt": False}
    assert http.post(CHAT, json=request).json()["usage"]["prompt_tokens"] == count
