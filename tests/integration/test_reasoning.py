"""Reasoning apart from the answer, with a model whose template begins it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from support.processes import WorkerProcess
from support.recovery import IDS, RESUME, blocks, kept, merged
from support.wire import Json, user

CHAT = "/v1/chat/completions"
TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{{- message.content }}<|im_end|>
{% endfor -%}
{%- if tools %}<tool_call>{% endif -%}
{%- if reasoning_effort %}effort {{ reasoning_effort }} {% endif -%}
{%- if verbosity %}verbosity {{ verbosity }} {% endif -%}
<|im_start|>assistant
{% if enable_thinking is not defined or enable_thinking %}<think>
{% else %}<think>

</think>

{% endif %}"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    path: Path = tmp_path_factory.mktemp("reasoning") / "thinking.jinja"
    path.write_text(TEMPLATE)
    arguments = ("--engine", "simulated", "--sim-itl-ms", "1", "--chat-template", str(path))
    with WorkerProcess(*arguments, "--controller-url", "http://127.0.0.1:9") as worker:
        yield worker


@pytest.fixture
def http(worker: WorkerProcess) -> Iterator[httpx.Client]:
    with worker.http() as client:
        yield client


def asking(**fields: Any) -> Json:
    return {"messages": user("hi"), "max_tokens": 20, **fields}


THOUGHT = asking(structured_outputs={"choice": ["cd"]}, max_tokens=800)
"""What the simulated engine thinks is its own affair; then it says "cd"."""


@pytest.mark.parametrize(
    ("begun", "is_thought"),
    [("<think>\nI should", True), ("<think>Yes.</think>It", False), ("The tag <think> is", False)],
)
def test_a_thought_in_the_final_message_goes_on(http: httpx.Client, begun: str, is_thought: bool) -> None:
    for content in (begun, [{"type": "text", "text": begun}]):
        messages = [*user("hi"), {"role": "assistant", "content": content}]
        answer = http.post(CHAT, json=asking(messages=messages, continue_final_message=True)).json()
        message = answer["choices"][0]["message"]
        assert bool(message.get("reasoning_content")) == is_thought and bool(message["content"]) != is_thought


def test_the_reasoning_stands_beside_the_content(http: httpx.Client) -> None:
    answer = http.post(CHAT, json=THOUGHT).json()
    message = answer["choices"][0]["message"]
    assert message["content"] == "cd" and message["reasoning"] == message["reasoning_content"]
    assert len(message["reasoning"]) > 20 and "think" not in message["reasoning"]
    usage = answer["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == usage["completion_tokens"] - len("cd")


def test_a_stream_has_it_in_its_own_field_and_no_tag_shows(worker: WorkerProcess) -> None:
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="simulated",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                extra_body={"structured_outputs": THOUGHT["structured_outputs"]},
            )
        )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    with worker.http() as http:
        whole = http.post(CHAT, json=THOUGHT).json()["choices"][0]["message"]["reasoning"]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == whole
    assert "".join(delta.content or "" for delta in deltas) == "cd"
    shown = [bool(delta.content) for delta in deltas if delta.content or getattr(delta, "reasoning_content", None)]
    assert shown == sorted(shown), "content came before the reasoning was over"


def test_reasoning_that_is_cut_off_is_reasoning(http: httpx.Client) -> None:
    choice = http.post(CHAT, json=asking()).json()["choices"][0]
    assert choice["message"]["reasoning_content"] and not choice["message"]["content"]
    assert choice["finish_reason"] == "length"


def test_a_stream_goes_on_elsewhere_in_and_behind_the_reasoning(http: httpx.Client) -> None:
    request = {**THOUGHT, "stream": True, "stream_options": {"include_usage": True}}
    whole = blocks(http.post(CHAT, json=request, headers=IDS).text)
    expected = merged(kept(whole).data)
    assert expected["choices"][0]["text"] == "cd"
    for cut in [*range(1, 10), *range(len(whole) - 16, len(whole))]:
        known = kept(whole[:cut])
        if not known.is_whole:
            headers = {**RESUME, "content-type": "application/json"}
            for block in blocks(http.post(CHAT, content=known.resume_body(request), headers=headers).text):
                known.take(block)
        assert merged(known.data) == expected, cut


def test_without_thinking_all_is_content(http: httpx.Client) -> None:
    for fields in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        answer = http.post(CHAT, json=asking(**fields)).json()
        assert answer["choices"][0]["message"]["content"]
        assert "reasoning_content" not in answer["choices"][0]["message"]
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({"reasoning_effort": "high"}, "effort high "),
        ({"verbosity": "low"}, "verbosity low "),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, "effort none "),
    ],
)
def test_what_is_asked_of_the_reasoning_reaches_the_template(http: httpx.Client, fields: Json, more: str) -> None:
    bare, asked = (http.post(CHAT, json=asking(**request)).json()["usage"]["prompt_tokens"] for request in ({}, fields))
    assert asked - bare == len(more)


def test_what_was_thought_before_goes_back_to_the_template(http: httpx.Client) -> None:
    def prompt_tokens(**fields: str) -> int:
        messages = [*user("a"), {"role": "assistant", "content": "b", **fields}, *user("c")]
        answer = http.post(CHAT, json={"messages": messages, "max_tokens": 1}).json()
        return int(answer["usage"]["prompt_tokens"])

    assert prompt_tokens(reasoning_content="hm") - prompt_tokens() == len("<think>hm</think>")
    assert prompt_tokens(reasoning="hm") == prompt_tokens(reasoning_content="hm")


def test_a_schema_holds_behind_the_reasoning(http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    request = {
        "messages": user("hi"),
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        "max_tokens": 800,
    }
    message = http.post(CHAT, json=request).json()["choices"][0]["message"]
    assert message["reasoning_content"]
    assert json.loads(message["content"])["a"] in (True, False)


def test_a_call_that_must_be_comes_behind_the_reasoning(http: httpx.Client) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    request = {"messages": user("hi"), "tools": [tool], "tool_choice": "required", "max_tokens": 800}
    message = http.post(CHAT, json=request).json()["choices"][0]["message"]
    assert message["reasoning_content"]
    assert {call["function"]["name"] for call in message["tool_calls"]} == {"f"}


def test_reasoning_stays_text_where_the_worker_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "thinking.jinja"
    path.write_text(TEMPLATE)
    arguments = ("--engine", "simulated", "--chat-template", str(path), "--reasoning-parser", "none")
    with WorkerProcess(*arguments) as worker, worker.http() as http:
        message = http.post(CHAT, json=asking()).json()["choices"][0]["message"]
    assert message["content"] and "reasoning_content" not in message
