"""/v1/chat/completions, whole answers. Streams are in test_streams.py."""

import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from openai.types.chat import ChatCompletion

from support.processes import Endpoint, WorkerProcess
from support.wire import Json, failed, user

PATH = "/v1/chat/completions"


def rendered(http: httpx.Client, messages: list[Json]) -> str:
    """The prompt that the template makes of messages."""
    tokens = http.post("/v1/tokenize", json={"messages": messages}).json()["tokens"]
    return str(http.post("/v1/detokenize", json={"tokens": [t for t in tokens if t < 256]}).json()["prompt"])


def test_an_answer_has_exactly_the_fields_and_types_of_openai(http: httpx.Client) -> None:
    answer = http.post(PATH, json={"messages": user("hi")}).json()
    parsed = ChatCompletion.model_validate(answer, strict=True)
    assert not parsed.model_extra
    (choice,) = parsed.choices
    assert not choice.model_extra and not choice.message.model_extra
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "stop" and choice.index == 0 and choice.logprobs is None
    assert parsed.id.startswith("chatcmpl-") and parsed.object == "chat.completion" and parsed.model == "simulated"
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == parsed.usage.prompt_tokens + parsed.usage.completion_tokens
    # One token is one byte here, and the end-of-sequence token counts.
    assert parsed.usage.completion_tokens == len(choice.message.content) + 1


def test_every_role_and_form_of_content_reaches_the_template(http: httpx.Client) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
    messages: list[Json] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "user", "content": "Grüße 你好 🙂", "name": "ada"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "blue"}]},
        {"role": "assistant", "content": "It is blue."},
    ]
    assert rendered(http, messages) == (
        "system\nBe brief.\nsystem\none\ntwo\nuser\nGrüße 你好 🙂\nassistant\n\n<tool_call>\n"
        '{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>\ntool\nblue\n'
        "assistant\nIt is blue.\nassistant\n"
    )
    assert http.post(PATH, json={"messages": messages}).status_code == 200


def test_a_null_content_is_the_assistants_alone(http: httpx.Client) -> None:
    for role in ("user", "system", "developer"):
        failed(http.post(PATH, json={"messages": [{"role": role, "content": None}]}), 400, param="messages[0]")
    messages = [*user("a"), {"role": "assistant", "content": None}, *user("b")]
    assert http.post(PATH, json={"messages": messages}).status_code == 200


def test_a_part_that_is_no_text_is_refused_by_its_place(http: httpx.Client) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [*user("a"), {"role": "user", "content": [{"type": "text", "text": "b"}, image]}]
    failed(
        http.post(PATH, json={"messages": messages}), 400, param="messages[1].content[1]", code="unsupported_parameter"
    )


@pytest.mark.long
def test_without_max_tokens_the_answer_may_fill_the_context(small_endpoint: Endpoint) -> None:
    with small_endpoint.http() as http:
        answer = http.post(PATH, json={"messages": user("hi"), "ignore_eos": True}).json()
    assert answer["usage"]["total_tokens"] == 64
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_completion_that_does_not_fit_is_refused_with_the_numbers(small_endpoint: Endpoint, field: str) -> None:
    with small_endpoint.http() as http:
        prompt_tokens = http.post("/v1/tokenize", json={"messages": user("hi")}).json()["count"]
        left = 64 - prompt_tokens
        for stream in (False, True):
            request = {"messages": user("hi"), "ignore_eos": True, "stream": stream}
            fits = http.post(PATH, json={**request, field: left})
            assert fits.status_code == 200
            error = failed(http.post(PATH, json={**request, field: left + 1}), 400, code="context_length_exceeded")
            assert all(str(number) in error["message"] for number in (64, prompt_tokens, left + 1)), error


@pytest.mark.parametrize("length", [64, 2000])
def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(small_endpoint: Endpoint, length: int) -> None:
    with small_endpoint.http() as http:
        count = http.post("/v1/tokenize", json={"messages": user("x" * length)}).json()["count"]
        response = http.post(PATH, json={"messages": user("x" * length)})
    error = failed(response, 400, param="messages", code="context_length_exceeded")
    assert "64" in error["message"] and str(count) in error["message"]


def test_a_prompt_that_no_tokenizing_could_make_fit_is_refused_unread(small_endpoint: Endpoint) -> None:
    with small_endpoint.http() as http:
        error = failed(http.post(PATH, json={"messages": user("x" * 100_000)}), 400, code="context_length_exceeded")
    assert "64 tokens, but you asked for at least" in error["message"]


def test_a_prompt_of_a_hundred_thousand_characters_is_answered() -> None:
    with WorkerProcess("--engine", "simulated", "--context-length", "200000") as worker, worker.http() as http:
        answer = http.post(PATH, json={"messages": user("word " * 20_000), "max_tokens": 8}).json()
    assert answer["usage"]["prompt_tokens"] > 100_000
    assert len(answer["choices"][0]["message"]["content"]) == 8


def test_choices_come_in_order_and_differ_by_seed(http: httpx.Client) -> None:
    request = {"messages": user("hi"), "n": 3, "seed": 7, "temperature": 2, "max_tokens": 40}
    answer = http.post(PATH, json=request).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert len(set(texts)) == 3
    assert answer["usage"]["completion_tokens"] == 120
    again = http.post(PATH, json=request).json()
    assert [choice["message"]["content"] for choice in again["choices"]] == texts


def test_log_probabilities_match_the_text(http: httpx.Client) -> None:
    request = {"messages": user("hi"), "logprobs": True, "top_logprobs": 2, "max_tokens": 20}
    answer = ChatCompletion.model_validate(http.post(PATH, json=request).json(), strict=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content
    for token in logprobs.content:
        assert token.logprob <= 0 and bytes(token.bytes or ()).decode() == token.token
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob


@pytest.mark.parametrize("stop", ["er", ["zzz", "er"]])
def test_a_stop_string_ends_the_text_and_does_not_show(http: httpx.Client, stop: Any) -> None:
    whole = http.post(PATH, json={"messages": user("hello")}).json()["choices"][0]["message"]["content"]
    assert "er" in whole
    answer = http.post(PATH, json={"messages": user("hello"), "stop": stop}).json()
    assert answer["choices"][0]["message"]["content"] == whole.partition("er")[0]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == whole.index("er") + 2


def test_a_stop_token_ends_the_text_and_does_not_show(http: httpx.Client) -> None:
    whole = http.post(PATH, json={"messages": user("hello")}).json()["choices"][0]["message"]["content"]
    request = {"messages": user("hello"), "stop_token_ids": [ord("e")], "logprobs": True}
    answer = http.post(PATH, json=request).json()
    choice = answer["choices"][0]
    assert choice["message"]["content"] == whole.partition("e")[0]
    assert len(choice["logprobs"]["content"]) == len(choice["message"]["content"])
    assert choice["finish_reason"] == "stop"


def test_what_openai_knows_and_we_do_not_honour_is_refused_by_name(http: httpx.Client) -> None:
    refused: Json = {
        "modalities": ["audio"],
        "audio": {"voice": "alloy", "format": "wav"},
        "web_search_options": {},
        "moderation": {"model": "m"},
    }
    for field, value in refused.items():
        response = http.post(PATH, json={"messages": user("hi"), field: value})
        failed(response, 400, param=field, code="unsupported_parameter")


def test_the_openai_client_talks_to_it(simulated_endpoint: Endpoint) -> None:
    with OpenAI(base_url=f"{simulated_endpoint.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="simulated", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content
        assert answer._request_id
        with pytest.raises(BadRequestError) as refused:
            client.chat.completions.create(
                model="simulated", messages=[{"role": "user", "content": "hi"}], temperature=7
            )
        assert refused.value.param == "temperature" and refused.value.type == "invalid_request_error"
        assert [model.id for model in client.models.list()] == ["simulated"]
        assert client.models.retrieve("simulated").id == "simulated"


@pytest.fixture
def async_client(simulated_endpoint: Endpoint) -> AsyncOpenAI:
    """Made here, because it reads files when it is made."""
    return AsyncOpenAI(base_url=f"{simulated_endpoint.url}/v1", api_key="none")


async def test_the_async_openai_client_talks_to_it(async_client: AsyncOpenAI) -> None:
    async with async_client as client:
        answer = await client.chat.completions.create(model="simulated", messages=[{"role": "user", "content": "hi"}])
        stream = await client.chat.completions.create(
            model="simulated", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == answer.choices[0].message.content


def test_a_body_that_the_json_module_made_with_escapes_is_the_same_body(http: httpx.Client) -> None:
    request = {"messages": user("Grüße 🙂"), "max_tokens": 30}
    escaped = http.post(PATH, content=json.dumps(request), headers={"content-type": "application/json"}).json()
    assert escaped["choices"] == http.post(PATH, json=request).json()["choices"]
