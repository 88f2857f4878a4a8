"""Event streams: their form, their text, and that they are the whole answer in pieces."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from support.processes import Endpoint, WorkerProcess
from support.wire import Json, RawConnection, chat_texts, chunks, completion_texts, user

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def cycle(*token_ids: int) -> Json:
    """Sampling fields that make the simulated engine repeat these tokens in turn."""
    bias = {str(token_id): 100 - rank / 100 for rank, token_id in enumerate(token_ids)}
    return {"logit_bias": bias, "frequency_penalty": 1, "ignore_eos": True}


def test_a_chat_stream_has_its_chunks_in_openais_order(http: httpx.Client) -> None:
    parts = chunks(http.post(CHAT, json={"messages": user("hi"), "stream": True, "n": 2, "max_tokens": 9}))
    for part in parts:
        parsed = ChatCompletionChunk.model_validate(part, strict=True)
        assert not parsed.model_extra and not parsed.choices[0].model_extra and not parsed.choices[0].delta.model_extra
        assert "usage" not in part
        assert len(part["choices"]) == 1
    assert {(part["id"], part["object"], part["created"], part["model"]) for part in parts} == {
        (parts[0]["id"], "chat.completion.chunk", parts[0]["created"], "simulated")
    }
    for index in (0, 1):
        mine = [part["choices"][0] for part in parts if part["choices"][0]["index"] == index]
        assert ["role" in choice["delta"] for choice in mine] == [True] + [False] * (len(mine) - 1)
        assert mine[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["length"]
        assert mine[-1]["delta"] == {}


def test_usage_comes_last_and_only_when_asked_for(http: httpx.Client) -> None:
    for path, request in ((CHAT, {"messages": user("hi")}), (COMPLETIONS, {"prompt": "hi"})):
        body = {**request, "max_tokens": 5}
        whole = http.post(path, json=body).json()
        stream = {**body, "stream": True}
        assert all("usage" not in part for part in chunks(http.post(path, json=stream)))
        off = {**stream, "stream_options": {"include_usage": False}}
        assert all("usage" not in part for part in chunks(http.post(path, json=off)))
        *parts, last = chunks(http.post(path, json={**stream, "stream_options": {"include_usage": True}}))
        assert all(part["usage"] is None and part["choices"] for part in parts)
        assert last["choices"] == [] and last["id"] == parts[0]["id"]
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert last["usage"][name] == whole["usage"][name]


def test_a_completion_stream_has_completion_chunks(http: httpx.Client) -> None:
    for part in chunks(http.post(COMPLETIONS, json={"prompt": "hi", "stream": True})):
        parsed = Completion.model_validate({**part, "choices": []}, strict=True)
        assert parsed.object == "text_completion" and part["choices"][0].keys() == {
            "index",
            "text",
            "logprobs",
            "finish_reason",
        }


@pytest.mark.parametrize(
    ("token_ids", "text"),
    [
        ((0xC3, 0xA9), "é"),
        (tuple("你".encode()), "你"),
        (tuple("🙂".encode()), "🙂"),
    ],
)
def test_a_character_of_several_tokens_is_never_shown_in_halves(
    http: httpx.Client, token_ids: tuple[int, ...], text: str
) -> None:
    request = {"messages": user("hi"), "max_tokens": 5 * len(token_ids), **cycle(*token_ids)}
    assert http.post(CHAT, json=request).json()["choices"][0]["message"]["content"] == text * 5
    parts = chunks(http.post(CHAT, json={**request, "stream": True}))
    assert chat_texts(parts) == {0: text * 5}
    assert all("�" not in part["choices"][0]["delta"].get("content", "") for part in parts)


def test_an_unfinished_character_at_the_end_is_one_replacement_character(http: httpx.Client) -> None:
    request = {"messages": user("hi"), "max_tokens": 6, **cycle(*"🙂".encode())}
    assert http.post(CHAT, json=request).json()["choices"][0]["message"]["content"] == "🙂�"
    assert chat_texts(chunks(http.post(CHAT, json={**request, "stream": True}))) == {0: "🙂�"}


def test_a_special_token_never_shows(http: httpx.Client) -> None:
    request = {"messages": user("hi"), "max_tokens": 12, **cycle(256, ord("1"), 258, ord("2"))}
    assert http.post(CHAT, json=request).json()["choices"][0]["message"]["content"] == "121212"
    parts = chunks(http.post(CHAT, json={**request, "stream": True}))
    assert chat_texts(parts) == {0: "121212"}
    assert "<|" not in json.dumps(parts)


def test_no_part_of_a_stop_string_is_ever_shown(paced_endpoint: Endpoint) -> None:
    """At a pace where every token is a chunk of its own: the text before "cad" ends in its beginnings, too."""
    request = {"messages": user("hi"), "stop": ["cad"], **cycle(*b"abc"), "max_tokens": 30, "stream": True}
    letters = {ord("a"): 100, ord("b"): 99.99, ord("c"): 99.98, ord("d"): 96.5}
    request["logit_bias"] = {str(token_id): bias for token_id, bias in letters.items()}
    with paced_endpoint.http() as http:
        whole = http.post(CHAT, json={**request, "stream": False, "stop": None}).json()
        text = whole["choices"][0]["message"]["content"]
        assert "d" in text and text.count("c") > 2
        stop = text[text.index("d") - 2 : text.index("d") + 1]
        parts = chunks(http.post(CHAT, json={**request, "stop": [stop]}))
    shown = text.partition(stop)[0]
    grown = ""
    for part in parts:
        grown += part["choices"][0]["delta"].get("content") or ""
        assert shown.startswith(grown)
    assert grown == shown
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"


def at_least(sampling: Json, min_tokens: int) -> Json:
    return sampling | {"min_tokens": min(min_tokens, sampling["max_tokens"])}


SAMPLING: st.SearchStrategy[Json] = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 60)},
    optional={
        "logit_bias": st.dictionaries(st.integers(0, 258).map(str), st.floats(60, 100), max_size=6),
        "frequency_penalty": st.floats(0, 2),
        "presence_penalty": st.floats(0, 2),
        "repetition_penalty": st.floats(0.5, 2),
        "seed": st.integers(0, 9),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "top_k": st.integers(-1, 5),
        "ignore_eos": st.booleans(),
        "stop": st.lists(st.text(alphabet="abeor .é�", min_size=1, max_size=3), max_size=4),
        "stop_token_ids": st.lists(st.integers(0, 258), max_size=3),
        "n": st.integers(1, 3),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sampling=SAMPLING | st.builds(at_least, SAMPLING, st.integers(0, 60)))
def test_a_stream_concatenates_to_exactly_the_whole_answer(http: httpx.Client, sampling: Json) -> None:
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    request: Json = {"messages": user("hi"), "logprobs": True, "top_logprobs": 1, **sampling}
    whole = http.post(CHAT, json=request).json()
    *parts, last = chunks(http.post(CHAT, json={**request, **streamed}))
    for choice in whole["choices"]:
        mine = [p["choices"][0] for p in parts if p["choices"][0]["index"] == choice["index"]]
        assert "".join(c["delta"].get("content") or "" for c in mine) == choice["message"]["content"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        tokens = [token for c in mine for token in ((c["logprobs"] or {}).get("content") or [])]
        assert tokens == choice["logprobs"]["content"]
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]

    request = {"prompt": ["hi", "ho"], "logprobs": 1, "echo": True, **sampling}
    whole = http.post(COMPLETIONS, json=request).json()
    *parts, last = chunks(http.post(COMPLETIONS, json={**request, **streamed}))
    assert completion_texts(parts) == {choice["index"]: choice["text"] for choice in whole["choices"]}
    for choice in whole["choices"]:
        pieces = [p["choices"][0] for p in parts if p["choices"][0]["index"] == choice["index"]]
        for name, values in choice["logprobs"].items():
            assert [v for piece in pieces if piece["logprobs"] for v in piece["logprobs"][name]] == values
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_tokens_reach_the_client_one_by_one_as_they_are_made(paced_endpoint: Endpoint) -> None:
    with RawConnection(paced_endpoint.url) as connection:
        connection.post(CHAT, {"messages": user("hi"), "stream": True, "max_tokens": 40})
        status, headers = connection.read_head()
        assert status == 200 and headers["content-type"].startswith("text/event-stream")
        assert "content-length" not in headers
        received = list(connection.read_chunks())
    # What lay waiting together would come as fewer chunks; a busy machine may merge some.
    assert len(received) > 20


def test_the_first_token_comes_long_before_the_last_is_made() -> None:
    with (
        WorkerProcess("--engine", "simulated", "--sim-itl-ms", "3600000") as worker,
        RawConnection(worker.url) as connection,
    ):
        connection.post(CHAT, {"messages": user("hi"), "stream": True})
        connection.read_head()
        first = next(connection.read_chunks()).decode()
    assert '"role":"assistant"' in first and '"content":"' in first.split("\n\n")[1]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_choices_interleave(paced_endpoint: Endpoint, path: str) -> None:
    body: Any = {"messages": user("hi"), "n": 3} if path == CHAT else {"prompt": ["a", "b", "c"]}
    with paced_endpoint.http() as http:
        parts = chunks(http.post(path, json={**body, "stream": True, "max_tokens": 15}))
    order = [part["choices"][0]["index"] for part in parts]
    changes = sum(1 for before, after in zip(order, order[1:], strict=False) if before != after)
    assert set(order) == {0, 1, 2} and changes > 6
