"""docs/compatibility.md says of every field what becomes of it, and says the truth."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import httpx
import pytest
from pydantic import BaseModel

from chatfleet.protocol.chat import ChatCompletionRequest
from chatfleet.protocol.completions import CompletionRequest
from chatfleet.protocol.embeddings import EmbeddingRequest
from chatfleet.protocol.stored import PageQuery, StoredCompletionUpdate
from chatfleet.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from support.openai_schemas import properties
from support.processes import FleetEndpoint
from support.wire import Json, chat_texts, chunks, completion_texts, failed, user

PAGE: Final = Path(__file__).parents[2] / "docs" / "compatibility.md"
STATUSES: Final = ("honoured", "refused", "ignored", "unknown")
IGNORED_HEADER: Final = "x-chatfleet-ignored"

MODELS: Final[dict[str, type[BaseModel]]] = {
    "POST /v1/chat/completions": ChatCompletionRequest,
    "POST /v1/completions": CompletionRequest,
    "POST /v1/embeddings": EmbeddingRequest,
    "POST /v1/tokenize": TokenizeRequest,
    "POST /v1/detokenize": DetokenizeRequest,
    "GET /v1/chat/completions": PageQuery,
    "GET /v1/chat/completions/{id}/messages": PageQuery,
    "POST /v1/chat/completions/{id}": StoredCompletionUpdate,
}
DESCRIBED: Final = {
    "POST /v1/chat/completions": {
        "": ["CreateChatCompletionRequest"],
        "messages[].": [
            f"ChatCompletionRequest{role}Message"
            for role in ("Assistant", "Developer", "Function", "System", "Tool", "User")
        ],
        "messages[].content[].": [
            f"ChatCompletionRequestMessageContentPart{kind}" for kind in ("Audio", "File", "Image", "Refusal", "Text")
        ],
        "messages[].tool_calls[].": ["ChatCompletionMessageToolCall"],
        "tools[].": ["ChatCompletionTool", "CustomToolChatCompletions"],
        "tools[].function.": ["FunctionObject"],
        "functions[].": ["ChatCompletionFunctions"],
        "tool_choice.": ["ChatCompletionNamedToolChoice", "ChatCompletionAllowedToolsChoice"],
        "tool_choice.allowed_tools.": ["ChatCompletionAllowedTools"],
        "prediction.": ["PredictionContent"],
        "response_format.": ["ResponseFormatText", "ResponseFormatJsonObject", "ResponseFormatJsonSchema"],
        "stream_options.": ["ChatCompletionStreamOptions"],
    },
    "POST /v1/completions": {"": ["CreateCompletionRequest"], "stream_options.": ["ChatCompletionStreamOptions"]},
    "POST /v1/embeddings": {"": ["CreateEmbeddingRequest"]},
}
"""Where OpenAI's description has the fields of an endpoint: by the path of the object, its schemas."""
QUERY: Final = {"GET /v1/chat/completions": {"model", "metadata"}}
"""Parameters that have no model."""


def table() -> dict[str, dict[str, str]]:
    """By endpoint, what the page says of each field."""
    said: dict[str, dict[str, str]] = {}
    endpoint = ""
    for line in PAGE.read_text().splitlines():
        if heading := re.match(r"## `((?:GET|POST|DELETE) [^`]+)`", line):
            endpoint = heading[1]
            said[endpoint] = {}
        elif line.startswith("## "):
            endpoint = ""
        elif endpoint and (row := re.match(r"\| (`[^|]+`) \| (\w+) \|", line)):
            for field in re.findall(r"`([^`]+)`", row[1]):
                assert field not in said[endpoint], f"{endpoint}: {field} is there twice"
                said[endpoint][field] = row[2]
    return said


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Paths of all fields of a request, such as `messages[].content[].text`."""
    for name, info in model.model_fields.items():
        path = f"{prefix}{info.alias or name}"
        yield path
        for inner, is_list in _models(info.annotation):
            yield from fields(inner, f"{path}[]." if is_list else f"{path}.")


def _models(annotation: Any, *, is_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, is_list
    for argument in get_args(annotation):
        yield from _models(argument, is_list=is_list or getattr(annotation, "__origin__", None) is list)


TABLE: Final = table()


@pytest.mark.parametrize("endpoint", MODELS)
def test_the_page_has_every_field_that_we_read_and_no_other(endpoint: str) -> None:
    ours = set(fields(MODELS[endpoint])) | QUERY.get(endpoint, set())
    if endpoint == "POST /v1/tokenize":  # the fields of messages and tools are those of chats
        ours = {field for field in ours if "." not in field}
    read = {field for field, status in TABLE[endpoint].items() if status in ("honoured", "ignored")}
    assert read - ours == set(), "in the page, and nobody reads it"
    known = {field for field, status in TABLE[endpoint].items() if status != "unknown"}
    assert ours - known == set(), "read, and not in the page"


@pytest.mark.parametrize("endpoint", DESCRIBED)
def test_the_page_has_every_field_of_openais_description(endpoint: str) -> None:
    described = {
        f"{prefix}{name}"
        for prefix, names in DESCRIBED[endpoint].items()
        for each in names
        for name in properties(each)
    }
    assert described - TABLE[endpoint].keys() == set()


def test_the_page_says_it_in_one_of_four_words() -> None:
    assert {status for rows in TABLE.values() for status in rows.values()} <= set(STATUSES)


WEATHER: Final[Json] = {
    "name": "get_weather",
    "description": "What the weather is like.",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
    "strict": True,
}
TOOLS: Final[Json] = {"tools": [{"type": "function", "function": WEATHER}], "max_tokens": 200}
CALLED: Final[Json] = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
SCHEMA: Final[Json] = {"name": "weather", "description": "Of a city.", "schema": WEATHER["parameters"], "strict": True}
TAG: Final[Json] = {
    "type": "structural_tag",
    "structures": [{"begin": "<city>", "schema": {"type": "string"}, "end": "</city>"}],
    "triggers": ["<city>"],
}


def conversation(**message: Any) -> Json:
    """A request whose second message has these fields."""
    return {"messages": [*user("hi"), {"role": "assistant", "content": "ho", **message}, *user("and now?")]}


def parts(**part: Any) -> Json:
    return {"messages": [{"role": "user", "content": [part]}]}


SAMPLING: Final[dict[str, Json]] = {
    "model": {"model": "simulated"},
    "n": {"n": 2},
    "stop": {"stop": ["a", "b"]},
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "presence_penalty": {"presence_penalty": 1},
    "frequency_penalty": {"frequency_penalty": 1},
    "seed": {"seed": 1},
    "logit_bias": {"logit_bias": {"97": 1}},
    "stream": {"stream": True},
    "stream_options": {"stream": True, "stream_options": {"include_usage": True}},
    "stream_options.include_obfuscation": {"stream": True, "stream_options": {"include_obfuscation": False}},
    "user": {"user": "somebody"},
    "top_k": {"top_k": 2},
    "min_p": {"min_p": 0.1},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "min_tokens": {"min_tokens": 2},
    "stop_token_ids": {"stop_token_ids": [97]},
    "ignore_eos": {"ignore_eos": True},
    "bad_words": {"bad_words": ["a"]},
    "bad_words_ids": {"bad_words_ids": [[97]]},
    "include_stop_str_in_output": {"include_stop_str_in_output": True},
    "skip_special_tokens": {"skip_special_tokens": False},
    "return_token_ids": {"return_token_ids": True},
    "prompt_logprobs": {"prompt_logprobs": 1},
    "response_format": {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
    "response_format.json_schema.name": {"response_format": {"type": "text", "json_schema": {"name": "weather"}}},
    "response_format.json_schema.description": {
        "response_format": {"type": "text", "json_schema": {"name": "weather", "description": "Of a city."}}
    },
    "response_format.json_schema.strict": {
        "response_format": {"type": "text", "json_schema": {"name": "weather", "strict": True}}
    },
    "response_format.structures": {"response_format": TAG},
    "response_format.triggers": {"response_format": TAG},
    "response_format.format": {
        "response_format": {"type": "structural_tag", "format": {"type": "const_string", "value": "a"}}
    },
    "structured_outputs": {"structured_outputs": {"regex": "[ab]+"}},
    "structured_outputs.json": {"structured_outputs": {"json": WEATHER["parameters"]}},
    "structured_outputs.choice": {"structured_outputs": {"choice": ["a", "b"]}},
    "structured_outputs.grammar": {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}},
    "structured_outputs.json_object": {"structured_outputs": {"json_object": True}},
    "structured_outputs.structural_tag": {"structured_outputs": {"structural_tag": TAG}},
}
CHAT: Final[dict[str, Json]] = {
    "messages": {"messages": user("ho")},
    "messages[].role": {"messages": [{"role": "developer", "content": "be brief"}, *user("hi")]},
    "messages[].name": {"messages": [{"role": "user", "content": "hi", "name": "me"}]},
    "messages[].tool_calls": conversation(tool_calls=[{"id": "1", "type": "function", "function": CALLED}]),
    "messages[].tool_call_id": {"messages": [*user("hi"), {"role": "tool", "content": "22", "tool_call_id": "1"}]},
    "messages[].function_call": conversation(function_call=CALLED),
    "messages[].refusal": conversation(refusal="no"),
    "messages[].audio": conversation(audio={"id": "audio_1"}),
    "messages[].content[]": parts(type="text", text="hi"),
    "messages[].content[].refusal": conversation(content=[{"type": "refusal", "refusal": "no"}]),
    "messages[].content[].image_url": parts(type="image_url", image_url={"url": "http://localhost/a.png"}),
    "messages[].content[].input_audio": parts(type="input_audio", input_audio={"data": "", "format": "wav"}),
    "messages[].content[].file": parts(type="file", file={"file_id": "file-1"}),
    "messages[].content[].video_url": parts(type="video_url", video_url={"url": "http://localhost/a.mp4"}),
    "messages[].content[].audio_url": parts(type="audio_url", audio_url={"url": "http://localhost/a.wav"}),
    "messages[].content[].prompt_cache_breakpoint": parts(
        type="text", text="hi", prompt_cache_breakpoint={"mode": "explicit"}
    ),
    "messages[].reasoning_content": conversation(reasoning_content="hm"),
    "messages[].reasoning": conversation(reasoning="hm"),
    "max_completion_tokens": {"max_completion_tokens": 2},
    "max_tokens": {"max_tokens": 2},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 2},
    "tools": TOOLS,
    "tools[].custom": {"tools": [{"type": "custom", "custom": {"name": "run"}}]},
    "tool_choice": {**TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
    "tool_choice.allowed_tools": {
        **TOOLS,
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "required",
                "tools": [{"type": "function", "function": {"name": "get_weather"}}],
            },
        },
    },
    "parallel_tool_calls": {**TOOLS, "parallel_tool_calls": False},
    "functions": {"functions": [WEATHER], "max_tokens": 200},
    "function_call": {"functions": [WEATHER], "function_call": {"name": "get_weather"}, "max_tokens": 200},
    "reasoning_effort": {"reasoning_effort": "low"},
    "verbosity": {"verbosity": "low"},
    "store": {"store": True},
    "metadata": {"metadata": {"a": "b"}},
    "modalities": {"modalities": ["text"]},
    "audio": {"audio": {"voice": "alloy", "format": "mp3"}},
    "web_search_options": {"web_search_options": {}},
    "moderation": {"moderation": {"model": "omni-moderation-latest"}},
    "prediction": {"prediction": {"type": "content", "content": "ho"}},
    "prediction.content[]": {"prediction": {"type": "content", "content": [{"type": "text", "text": "ho"}]}},
    "service_tier": {"service_tier": "priority"},
    "safety_identifier": {"safety_identifier": "somebody"},
    "prompt_cache_key": {"prompt_cache_key": "key"},
    "prompt_cache_retention": {"prompt_cache_retention": "24h"},
    "prompt_cache_options": {"prompt_cache_options": {"ttl": "30m"}},
    "chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": False}},
    "add_generation_prompt": {"add_generation_prompt": False},
    "continue_final_message": {
        "messages": [*user("hi"), {"role": "assistant", "content": "ho"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
}
SAMPLES: Final[dict[str, dict[str, Json]]] = {
    "POST /v1/chat/completions": SAMPLING | CHAT,
    "POST /v1/completions": SAMPLING
    | {
        "prompt": {"prompt": ["a", "b"]},
        "max_tokens": {"max_tokens": 2},
        "best_of": {"best_of": 2},
        "echo": {"echo": True},
        "logprobs": {"logprobs": 2},
        "suffix": {"suffix": ""},
    },
    "POST /v1/embeddings": {
        "model": {"model": "simulated"},
        "input": {"input": ["a", "b"]},
        "encoding_format": {"encoding_format": "base64"},
        "dimensions": {"dimensions": 2},
        "user": {"user": "somebody"},
    },
    "POST /v1/tokenize": {
        "model": {"model": "simulated"},
        "prompt": {"prompt": "ho"},
        "messages": {"prompt": None, "messages": user("hi")},
        "tools": {"prompt": None, "messages": user("hi"), "tools": TOOLS["tools"]},
        "add_generation_prompt": {"prompt": None, "messages": user("hi"), "add_generation_prompt": False},
        "add_special_tokens": {"add_special_tokens": False},
        "return_token_strs": {"return_token_strs": True},
    },
    "POST /v1/detokenize": {"model": {"model": "simulated"}, "tokens": {"tokens": [97]}},
}
"""A request for each field; for fields of an object, one that has them all."""
PLAIN: Final[dict[str, Json]] = {
    "POST /v1/chat/completions": {"messages": user("hi"), "max_tokens": 8},
    "POST /v1/completions": {"prompt": "hi", "max_tokens": 8},
    "POST /v1/embeddings": {"input": "hi"},
    "POST /v1/tokenize": {"prompt": "hi"},
    "POST /v1/detokenize": {"tokens": [104]},
}


def sample(endpoint: str, field: str) -> Json:
    """A request that has this field, be it within another."""
    samples = SAMPLES[endpoint]
    parents = [field]
    while parents[-1] not in samples:
        parents.append(re.sub(r"(\[\]|\.?[^.\[\]]+)$", "", parents[-1]))
        assert parents[-1], f"no sample of {endpoint}: {field}"
    return PLAIN[endpoint] | samples[parents[-1]]


@pytest.fixture(scope="module")
def fleet() -> Iterator[httpx.Client]:
    """A gateway before a worker."""
    with FleetEndpoint("--engine", "simulated") as gateway, gateway.http() as http:
        yield http


def sent(fleet: httpx.Client, endpoint: str, body: Json) -> httpx.Response:
    return fleet.post(endpoint.removeprefix("POST "), json=body)


def said(response: httpx.Response) -> Any:
    """What an answer says: without what differs from one to the next, and however a stream is cut."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        parts = chunks(response)
        return completion_texts(parts) if parts[0]["object"] == "text_completion" else chat_texts(parts)
    answer = response.json()
    return {name: value for name, value in answer.items() if name not in ("id", "created", "service_tier", "usage")}


def rows(*statuses: str) -> list[tuple[str, str]]:
    return [(endpoint, field) for endpoint in PLAIN for field, status in TABLE[endpoint].items() if status in statuses]


@pytest.mark.parametrize(("endpoint", "field"), rows("honoured"))
def test_what_is_honoured_is_not_refused(fleet: httpx.Client, endpoint: str, field: str) -> None:
    response = sent(fleet, endpoint, sample(endpoint, field))
    assert response.status_code == 200, response.text
    assert IGNORED_HEADER not in response.headers


@pytest.mark.parametrize(("endpoint", "field"), rows("refused"))
def test_what_is_refused_is_named(fleet: httpx.Client, endpoint: str, field: str) -> None:
    error = failed(sent(fleet, endpoint, sample(endpoint, field)), 400)
    pattern = re.escape(field.partition(".")[0]).replace(re.escape("[]"), r"\[\d+\]")
    assert re.match(pattern, error["param"] or ""), error


@pytest.mark.parametrize(("endpoint", "field"), rows("ignored"))
def test_what_is_ignored_changes_nothing_and_is_not_called_unknown(
    fleet: httpx.Client, endpoint: str, field: str
) -> None:
    body = sample(endpoint, field)
    response = sent(fleet, endpoint, body)
    top = field.partition(".")[0].removesuffix("[]")
    plain = {name: value for name, value in body.items() if name != top} if top != "messages" else PLAIN[endpoint]
    assert said(response) == said(sent(fleet, endpoint, plain))
    assert IGNORED_HEADER not in response.headers


@pytest.mark.parametrize(("endpoint", "field"), rows("unknown"))
def test_what_is_unknown_is_named_in_the_answer(fleet: httpx.Client, endpoint: str, field: str) -> None:
    response = sent(fleet, endpoint, PLAIN[endpoint] | {field: 1})
    assert response.status_code == 200, response.text
    assert response.headers[IGNORED_HEADER] == field


@pytest.mark.parametrize("endpoint", ["POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings"])
def test_null_is_the_same_as_nothing(fleet: httpx.Client, endpoint: str) -> None:
    nothing = {name: None for name, field in MODELS[endpoint].model_fields.items() if not field.is_required()}
    assert said(sent(fleet, endpoint, nothing | PLAIN[endpoint])) == said(sent(fleet, endpoint, PLAIN[endpoint]))


def test_the_parameters_of_stored_completions_are_read_and_others_named(fleet: httpx.Client) -> None:
    path = "/v1/chat/completions"
    stored = [fleet.post(path, json={"messages": user("hi"), "store": True, "max_tokens": 1}).json() for _ in range(2)]
    sent = {"model": "simulated", "metadata[a]": "b", "after": stored[0]["id"], "limit": "1", "order": "asc"}
    assert {name.partition("[")[0] for name in sent} == TABLE[f"GET {path}"].keys()
    messages = f"{path}/{stored[0]['id']}/messages"
    assert {"after", "limit", "order"} == TABLE[f"GET {path}/{{id}}/messages"].keys()
    for url, names in ((path, sent), (messages, ("limit", "order"))):
        for name in names:
            response = fleet.get(url, params={name: sent[name]})
            assert response.status_code == 200, response.text
            assert IGNORED_HEADER not in response.headers
        assert fleet.get(url, params={"foo": "1"}).headers[IGNORED_HEADER] == "foo"


def test_what_has_no_fields_is_as_the_page_says(fleet: httpx.Client) -> None:
    assert "max_model_len" in fleet.get("/v1/models/simulated").json()
    failed(fleet.delete("/v1/models/simulated"), 405)
    assert [endpoint for endpoint, said_of in TABLE.items() if not said_of] == [
        "GET /v1/models",
        "GET /v1/models/{model}",
        "GET /v1/chat/completions/{id}",
        "DELETE /v1/chat/completions/{id}",
    ]
