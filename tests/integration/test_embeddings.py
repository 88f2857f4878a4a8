"""/v1/embeddings, /v1/tokenize and /v1/detokenize."""

import base64
import math
import struct
from typing import Any

import httpx
import pytest
from openai import OpenAI
from openai.types import CreateEmbeddingResponse

from support.processes import Endpoint
from support.wire import failed, user

PATH = "/v1/embeddings"


def vectors(response: httpx.Response) -> list[list[float]]:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return [item["embedding"] for item in data]


def test_an_answer_has_exactly_the_fields_and_types_of_openai(http: httpx.Client) -> None:
    parsed = CreateEmbeddingResponse.model_validate(http.post(PATH, json={"input": "hello"}).json(), strict=True)
    assert not parsed.model_extra and not parsed.data[0].model_extra
    assert parsed.object == "list" and parsed.model == "simulated" and parsed.usage.total_tokens == 5
    assert math.isclose(sum(value * value for value in parsed.data[0].embedding), 1, rel_tol=1e-5)


def test_every_form_of_input_is_the_same_input(http: httpx.Client) -> None:
    one = vectors(http.post(PATH, json={"input": "hi"}))
    for given in (["hi"], [104, 105], [[104, 105]]):
        assert vectors(http.post(PATH, json={"input": given})) == one
    several = http.post(PATH, json={"input": ["hi", "ho", "hi"]})
    assert vectors(several)[0] == one[0] == vectors(several)[2] != vectors(several)[1]
    assert several.json()["usage"] == {"prompt_tokens": 6, "total_tokens": 6}


def test_base64_holds_the_same_float32_values(http: httpx.Client) -> None:
    (floats,) = vectors(http.post(PATH, json={"input": "hi"}))
    encoded = http.post(PATH, json={"input": "hi", "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert list(struct.unpack("<64f", base64.b64decode(encoded, validate=True))) == floats


def test_dimensions_shorten_and_normalise_anew(http: httpx.Client) -> None:
    (full,) = vectors(http.post(PATH, json={"input": "hi"}))
    (short,) = vectors(http.post(PATH, json={"input": "hi", "dimensions": 8}))
    norm = math.sqrt(sum(value * value for value in full[:8]))
    assert short == pytest.approx([value / norm for value in full[:8]], rel=1e-6)
    failed(http.post(PATH, json={"input": "hi", "dimensions": 65}), 400, param="dimensions")


def test_an_input_that_does_not_fit_is_refused_with_the_numbers(small_endpoint: Endpoint) -> None:
    with small_endpoint.http() as http:
        failed(http.post(PATH, json={"input": "x" * 65}), 400, param="input", code="context_length_exceeded")
        error = failed(http.post(PATH, json={"input": ["a", "x" * 65]}), 400, param="input[1]")
        assert "64" in error["message"] and "65" in error["message"]
        assert len(vectors(http.post(PATH, json={"input": ["x" * 64] * 2048}))) == 2048


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [999]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": {"text": "a"}}, "input"),
        ({}, "input"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(http: httpx.Client, body: Any, param: str) -> None:
    failed(http.post(PATH, json=body), 400, param=param)


def test_the_openai_client_talks_to_it(simulated_endpoint: Endpoint, http: httpx.Client) -> None:
    (floats,) = vectors(http.post(PATH, json={"input": "hi"}))
    with OpenAI(base_url=f"{simulated_endpoint.url}/v1", api_key="none") as client:
        answer = client.embeddings.create(model="simulated", input=["hi"])  # asks for base64
    assert answer.data[0].embedding == pytest.approx(floats)


@pytest.mark.parametrize("text", ["", "hello", "Grüße 你好 🙂\u0000\n", "a<|im_end|>b"])
def test_tokens_and_text_turn_into_each_other(http: httpx.Client, text: str) -> None:
    answer = http.post("/v1/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) and answer["max_model_len"] == 4096
    back = http.post("/v1/detokenize", json={"tokens": answer["tokens"]}).json()["prompt"]
    assert back == text.replace("<|im_end|>", "")


def test_messages_are_tokenized_as_chat_would_see_them(http: httpx.Client) -> None:
    count = http.post("/v1/tokenize", json={"messages": user("hi")}).json()["count"]
    usage = http.post("/v1/chat/completions", json={"messages": user("hi")}).json()["usage"]
    assert count == usage["prompt_tokens"]
    without = {"messages": user("hi"), "add_generation_prompt": False}
    assert http.post("/v1/tokenize", json=without).json()["count"] == count - len("?assistant\n")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/tokenize", {}, None),
        ("/v1/tokenize", {"prompt": "a", "messages": user("a")}, None),
        ("/v1/tokenize", {"prompt": 5}, "prompt"),
        ("/v1/tokenize", {"messages": []}, "messages"),
        ("/v1/detokenize", {"tokens": [259]}, "tokens"),
        ("/v1/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/v1/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/v1/detokenize", {}, "tokens"),
    ],
)
def test_a_bad_tokenize_request_is_refused(http: httpx.Client, path: str, body: Any, param: str | None) -> None:
    failed(http.post(path, json=body), 400, param=param)
