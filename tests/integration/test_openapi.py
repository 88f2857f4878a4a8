"""Answers are what OpenAI's API description says: every field that it requires, of its type, and no other.

`tests/support/openai_schemas.py` has the few places where OpenAI's own server differs from its description.
"""

import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from support.openai_schemas import STORED, complaints
from support.processes import Endpoint, FleetEndpoint
from support.wire import Json, chunks, failed, user

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
FUNCTION: Json = {
    "name": "get_weather",
    "description": "What the weather is like.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
CHATS: dict[str, Json] = {
    "plain": {},
    "several": {"n": 3, "seed": 1},
    "log probabilities": {"logprobs": True, "top_logprobs": 3},
    "a tier": {"service_tier": "auto"},
    "a tool": {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required", "max_tokens": 400},
    "a function": {"functions": [FUNCTION], "function_call": {"name": "get_weather"}, "max_tokens": 400},
    "an object": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "weather", "schema": FUNCTION["parameters"], "strict": True},
        },
        "max_tokens": 400,
    },
    "cut off": {"max_tokens": 3},
    "vLLM's": {"return_token_ids": True},
}
TEXTS: dict[str, Json] = {
    "plain": {},
    "several": {"n": 2, "prompt": ["a", "b"]},
    "log probabilities": {"logprobs": 3},
    "chosen tokens only": {"logprobs": 0},
    "scored prompt": {"logprobs": 1, "echo": True},
    "vLLM's": {"return_token_ids": True},
}


def fits(schema: str, answers: Iterable[Any], also: frozenset[str] = frozenset()) -> None:
    for answer in answers:
        wrong = complaints(schema, answer, also)
        assert not wrong, (wrong, answer)


def answered(response: httpx.Response) -> Json:
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


@pytest.mark.parametrize("fields", CHATS.values(), ids=CHATS)
def test_a_chat_completion(http: httpx.Client, fields: Json) -> None:
    answer = answered(http.post(CHAT, json={"messages": user("hi"), **fields}))
    fits("CreateChatCompletionResponse", [answer])
    assert answer["system_fingerprint"] and answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert ("service_tier" in answer) == ("service_tier" in fields)


@pytest.mark.parametrize("fields", CHATS.values(), ids=CHATS)
def test_every_chunk_of_a_chat_completion(http: httpx.Client, fields: Json) -> None:
    for options in ({}, {"stream_options": {"include_usage": True}}):
        said = chunks(http.post(CHAT, json={"messages": user("hi"), "stream": True, **fields, **options}))
        fits("CreateChatCompletionStreamResponse", said)
        assert len({(chunk["id"], chunk["created"], chunk["system_fingerprint"]) for chunk in said}) == 1
        assert all(("usage" in chunk) == bool(options) for chunk in said)
        assert bool(said[-1].get("usage")) == bool(options)


@pytest.mark.parametrize("fields", [*TEXTS.values(), {"best_of": 3, "n": 2}, {"prompt_logprobs": 2}], ids=str)
def test_a_completion(http: httpx.Client, fields: Json) -> None:
    answer = answered(http.post(COMPLETIONS, json={"prompt": "hi", **fields}))
    fits("CreateCompletionResponse", [answer])
    assert answer["system_fingerprint"] and all(choice["finish_reason"] for choice in answer["choices"])


@pytest.mark.parametrize("fields", TEXTS.values(), ids=TEXTS)
def test_every_chunk_of_a_completion(http: httpx.Client, fields: Json) -> None:
    for options in ({}, {"stream_options": {"include_usage": True}}):
        said = chunks(http.post(COMPLETIONS, json={"prompt": "hi", "stream": True, **fields, **options}))
        fits("CreateCompletionResponse", said)
        assert bool(said[-1].get("usage")) == bool(options)


@pytest.mark.parametrize(
    "fields", [{}, {"encoding_format": "base64"}, {"dimensions": 4}, {"input": ["a", "b"]}], ids=str
)
def test_embeddings(http: httpx.Client, fields: Json) -> None:
    fits("CreateEmbeddingResponse", [answered(http.post("/v1/embeddings", json={"input": "hi", **fields}))])


def test_the_models(http: httpx.Client) -> None:
    listed = answered(http.get("/v1/models"))
    fits("ListModelsResponse", [listed])
    fits("Model", [answered(http.get(f"/v1/models/{listed['data'][0]['id']}"))])


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, {}, 400),
        (CHAT, {"messages": user("hi"), "n": 0}, 400),
        (CHAT, {"messages": user("hi"), "model": "none"}, 404),
        (COMPLETIONS, {"prompt": "hi", "suffix": "there"}, 400),
        ("/v1/embeddings", {"input": []}, 400),
        ("/v1/nowhere", {}, 404),
        ("/v1/models", {}, 405),
    ],
)
def test_errors(http: httpx.Client, path: str, body: Json, status: int) -> None:
    response = http.post(path, json=body)
    failed(response, status)
    fits("ErrorResponse", [response.json()])


def test_stored_chat_completions(simulated_endpoint: Endpoint, http: httpx.Client) -> None:
    fields = {"messages": user("hi"), "store": True, "metadata": {"of": "openapi"}, "max_tokens": 8}
    response = http.post(CHAT, json=fields)
    if not isinstance(simulated_endpoint, FleetEndpoint):
        failed(response, 400, param="store")
        return
    fits("CreateChatCompletionResponse", [answered(response)])
    stored = f"{CHAT}/{response.json()['id']}"
    listed = answered(http.get(CHAT, params={"metadata[of]": "openapi"}))
    fits("ChatCompletionList", [listed], STORED)
    assert listed["data"]
    fits("CreateChatCompletionResponse", [answered(http.get(stored))], STORED)
    messages = answered(http.get(f"{stored}/messages"))
    fits("ChatCompletionMessageList", [messages], STORED)
    assert messages["data"]
    fits("CreateChatCompletionResponse", [answered(http.post(stored, json={"metadata": {"of": "nothing"}}))], STORED)
    fits("ChatCompletionList", [answered(http.get(CHAT, params={"metadata[of]": "openapi"}))], STORED)
    fits("ChatCompletionDeleted", [answered(http.delete(stored))])
    fits("ErrorResponse", [http.get(stored).json()])


def test_a_field_that_is_not_described_is_found_out(http: httpx.Client) -> None:
    answer = answered(http.post(CHAT, json={"messages": user("hi")}))
    assert complaints("CreateChatCompletionResponse", answer | {"surprise": 1})
    assert complaints("CreateChatCompletionResponse", {key: answer[key] for key in answer if key != "model"})
    answer["choices"][0]["message"] = json.loads('{"role": "assistant", "content": "hi"}')
    assert complaints("CreateChatCompletionResponse", answer)
