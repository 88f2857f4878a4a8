"""Bad JSON of every kind: a 4xx in the one form, or an answer; never a 5xx, and the process lives."""

import copy
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.wire import Json, error_object, user

VALID: dict[str, Json] = {
    "/v1/chat/completions": {
        "model": "simulated",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "a", "content": "b"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.5,
        "n": 2,
        "seed": 1,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 1,
        "logit_bias": {"5": 1},
        "response_format": {"type": "text"},
        "metadata": {"a": "b"},
        "chat_template_kwargs": {"a": "b"},
        "stop_token_ids": [5],
        "user": "u",
    },
    "/v1/completions": {
        "prompt": ["hi", "ho"],
        "max_tokens": 3,
        "n": 1,
        "echo": True,
        "logprobs": 1,
        "stop": "x",
        "best_of": 1,
        "suffix": "",
        "logit_bias": {"5": 1},
        "stream": False,
    },
    "/v1/embeddings": {"input": ["hi", "ho"], "encoding_format": "base64", "dimensions": 8, "user": "u"},
    "/v1/tokenize": {"prompt": "hi", "add_special_tokens": True, "return_token_strs": True},
    "/v1/detokenize": {"tokens": [1, 2, 3]},
}

NASTY: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3.7,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    2**31,
    2**63,
    2**64,
    10**400,
    "",
    "x",
    "\x00",
    "\ud800",
    "\udfff\ud800",
    "\ufeff",
    "\u202e🙂",
    "NaN",
    "<|im_start|>system",
    "{{ 7 * 7 }}",
    "../../etc/passwd",
    "A" * 5000,
    [],
    {},
    [[]],
    [None],
    [{}],
    [-1],
    [1, "a"],
    [["a"], [1]],
    {"": ""},
    {"type": "image_url"},
    {"type": "json_object"},
    {"__class__": "x"},
    ["x"] * 200,
    [0] * 5000,
    "[" * 100,
    "%s%n",
    "data: [DONE]\n\n",
]
WORDS = [
    "role",
    "content",
    "type",
    "text",
    "function",
    "name",
    "model",
    "n",
    "stream",
    "prompt",
    "input",
    "x\r\ny: z",
    "",
]


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in paths_of(item, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path and a valid request with up to three of its values replaced, removed, doubled or renamed."""
    path = draw(st.sampled_from(sorted(VALID)))
    body: Any = copy.deepcopy(VALID[path])
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from(paths_of(body)))
        if not where:
            continue
        *route, last = where
        parent = body
        for step in route:
            parent = parent[step]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "nest", "rename", "double"]))
        if kind == "replace":
            parent[last] = copy.deepcopy(draw(st.sampled_from(NASTY)))
        elif kind == "remove":
            del parent[last]
        elif kind == "nest":
            for _ in range(draw(st.integers(1, 70))):
                parent[last] = draw(st.sampled_from([[parent[last]], {"a": parent[last]}]))
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        elif kind == "rename":
            parent[draw(st.sampled_from(WORDS))] = parent.pop(last)
        else:
            parent[draw(st.sampled_from(WORDS))] = copy.deepcopy(parent[last])
    ascii_only = draw(st.booleans())
    return path, json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path and a valid body with some of its bytes lost, doubled or replaced."""
    path = draw(st.sampled_from(sorted(VALID)))
    body = bytearray(json.dumps(VALID[path]).encode())
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = start + draw(st.integers(0, 8))
        body[start:end] = draw(
            st.sampled_from([b"", b"\xff\xfe", b"\x00", b'"', b"\\", b"\\ud800", b"{", b"]", b"1e999", b","])
        )
    return path, bytes(body)


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def post(http: httpx.Client, path: str, body: bytes) -> httpx.Response:
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200 or 400 <= response.status_code < 500, (response.status_code, response.text)
    if response.status_code >= 400:
        assert error_object(response.content)["type"] == "invalid_request_error"
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        json.loads(response.content, parse_constant=_refuse_constant)
    return response


quiet = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quiet
@given(request=mutated())
def test_a_valid_request_with_wrong_values_in_it_is_refused_or_answered(
    http: httpx.Client, request: tuple[str, bytes]
) -> None:
    post(http, *request)


@quiet
@given(request=damaged())
def test_a_body_with_damaged_bytes_is_refused_or_answered(http: httpx.Client, request: tuple[str, bytes]) -> None:
    post(http, *request)


@quiet
@given(path=st.sampled_from(sorted(VALID)), body=st.binary(max_size=60))
def test_bytes_of_any_kind_are_refused(http: httpx.Client, path: str, body: bytes) -> None:
    assert post(http, path, body).status_code == 400


@pytest.mark.parametrize("path", sorted(VALID))
def test_the_requests_that_the_mutations_start_from_are_valid(http: httpx.Client, path: str) -> None:
    assert http.post(path, json=VALID[path]).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"5",
        b"{",
        b"{}",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'\xef\xbb\xbf{"messages": [{"role": "user", "content": "a"}]}',
        '{"messages": [{"role": "user", "content": "a"}]}'.encode("utf-16"),
        b'{"messages": [{"role": "user", "content": "a"}]} trailing',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1e1}',
        b'{"messages": [{"role": "user", "content": "a"}], "n": 99999999999999999999}',
    ],
)
def test_a_body_that_cannot_be_meant_is_a_400(http: httpx.Client, body: bytes) -> None:
    assert post(http, "/v1/chat/completions", body).status_code == 400


def test_of_a_field_given_twice_the_last_counts(http: httpx.Client) -> None:
    body = b'{"prompt": 5, "prompt": "hi", "max_tokens": 0, "max_tokens": 2}'
    assert post(http, "/v1/completions", body).json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("arguments", ["", "{", "[" * 2_000, '{"a": "\\ud800"}', "9" * 2_000, "NaN", "null", "\x00"])
def test_tool_call_arguments_that_are_no_json_stay_text(http: httpx.Client, arguments: str) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [*user("a"), {"role": "assistant", "tool_calls": [call]}, *user("b")]
    body = json.dumps({"messages": messages, "max_tokens": 1}).encode()
    assert post(http, "/v1/chat/completions", body).status_code == 200
