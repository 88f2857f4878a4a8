"""Errors in OpenAI's form, request ids, ignored fields, and the paths that are no model's."""

import re
import subprocess
from typing import Any

import httpx
import pytest
from openai.types import Model

from support.processes import Endpoint, WorkerProcess
from support.wire import error_object, failed, user

CHAT = "/v1/chat/completions"
POSTS = (CHAT, "/v1/completions", "/v1/embeddings", "/v1/tokenize", "/v1/detokenize")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("top_p", 1.1),
        ("top_p", -1),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0),
        ("min_p", 2),
        ("top_k", -2),
        ("n", 0),
        ("n", 129),
        ("n", 1.5),
        ("n", True),
        ("max_tokens", 0),
        ("max_tokens", 2**31),
        ("max_completion_tokens", 0),
        ("min_tokens", -1),
        ("seed", 2**63),
        ("seed", "a"),
        ("top_logprobs", 21),
        ("top_logprobs", 1),
        ("logprobs", 3),
        ("stop", ["a"] * 5),
        ("stop", ""),
        ("stop", "x" * 1025),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"259": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", [1]),
        ("stop_token_ids", [259]),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("metadata", {str(number): "x" for number in range(17)}),
        ("messages", []),
        ("messages", "hi"),
        ("messages", None),
        ("model", 5),
        ("tools", [{"type": "function"}]),
        ("prompt_cache_retention", "forever"),
        ("repetition_penalty", 101),
        ("messages", [{"role": "user", "content": "hi"}, {"role": "tool", "content": "x"}]),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(http: httpx.Client, field: str, value: Any) -> None:
    error = failed(http.post(CHAT, json={"messages": user("hi"), field: value}), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] is not None and error["param"].split(".")[0].split("[")[0] == field


def test_more_tokens_at_least_than_at_most_are_refused(http: httpx.Client) -> None:
    failed(http.post(CHAT, json={"messages": user("hi"), "min_tokens": 9, "max_tokens": 8}), 400, param="min_tokens")
    failed(http.post("/v1/completions", json={"prompt": "hi", "min_tokens": 17}), 400, param="min_tokens")


def test_null_is_the_default_of_every_optional_field(http: httpx.Client) -> None:
    names = "temperature top_p n max_tokens stop seed tools tool_choice logit_bias stream stream_options user model"
    request = {"messages": user("hi"), **dict.fromkeys(names.split())}
    assert http.post(CHAT, json=request).status_code == 200


@pytest.mark.parametrize("path", POSTS)
def test_a_model_that_is_not_served_is_a_404_that_names_those_that_are(http: httpx.Client, path: str) -> None:
    bodies: dict[str, Any] = {
        CHAT: {"messages": user("hi")},
        "/v1/completions": {"prompt": "hi"},
        "/v1/embeddings": {"input": "hi"},
        "/v1/tokenize": {"prompt": "hi"},
        "/v1/detokenize": {"tokens": [1]},
    }
    error = failed(http.post(path, json={**bodies[path], "model": "gpt-9"}), 404, param="model", code="model_not_found")
    assert "gpt-9" in error["message"] and "simulated" in error["message"]
    assert http.post(path, json={**bodies[path], "model": "simulated"}).status_code == 200


def test_models_are_listed_and_found(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert Model.model_validate(card, strict=True).model_extra == {"max_model_len": 4096}
    assert http.get("/v1/models/simulated").json() == card
    for name in ("gpt-9", "a/b", "%00", "%ff", ""):
        failed(http.get(f"/v1/models/{name}"), 404, code="model_not_found")


def test_every_given_name_is_served() -> None:
    arguments = ("--engine", "simulated", "--model-name", "one", "--model-name", "org/two")
    with WorkerProcess(*arguments) as worker, worker.http() as http:
        assert "one, org/two" in worker.output
        assert [card["id"] for card in http.get("/v1/models").json()["data"]] == ["one", "org/two"]
        assert http.get("/v1/models/org/two").json()["id"] == "org/two"
        for name, answered in (("one", "one"), ("org/two", "org/two"), (None, "one")):
            answer = http.post(CHAT, json={"messages": user("hi"), "model": name, "max_tokens": 1})
            assert answer.json()["model"] == answered
        failed(http.post(CHAT, json={"messages": user("hi"), "model": "simulated"}), 404)


def test_health_readiness_and_documentation_answer(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json()["status"] == "ok"
    assert http.head("/health").status_code == http.head("/ready").status_code == 200
    assert "swagger" in http.get("/docs").text.lower()
    description = http.get("/openapi.json").json()
    defined = description["components"]["schemas"]
    for path in POSTS:
        operation = description["paths"][path]["post"]
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert reference.rpartition("/")[2] in defined
    used = set(re.findall(r'"#/components/schemas/([^"]+)"', http.get("/openapi.json").text))
    assert used <= defined.keys()


@pytest.mark.parametrize(
    "path", ["/v2", "/v1", "/v1/chat", "/v1/nothing", "/v1/chat/completions/", "/%00", "/a%0d%0ab"]
)
def test_an_unknown_path_is_a_404_in_the_one_form(http: httpx.Client, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        failed(http.request(method, path), 404, code="unknown_url")


def test_another_method_is_a_405_that_names_the_right_one(http: httpx.Client) -> None:
    for path in POSTS:
        for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS"):
            response = http.request(method, path)
            if (method, response.status_code) == ("GET", 200):  # of a gateway, the stored ones
                assert path == CHAT and response.json()["object"] == "list"
                continue
            failed(response, 405, code="method_not_allowed")
            assert response.headers["allow"].removeprefix("GET, ") == "POST"
    failed(http.post("/health"), 405)
    head = http.head("/v1/models")
    assert head.status_code == 405 and head.content == b"" and head.headers["x-request-id"]


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_is_not_json_by_its_own_word_is_a_415(http: httpx.Client, path: str) -> None:
    for content_type in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "é"):
        response = http.post(path, content=b"{}", headers=[(b"content-type", content_type.encode())])
        failed(response, 415, code="unsupported_media_type")
    compressed = {"content-type": "application/json", "content-encoding": "gzip"}
    failed(http.post(path, content=b"{}", headers=compressed), 415)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_a_json_body_is_taken_as_json(http: httpx.Client, content_type: str) -> None:
    response = http.post("/v1/completions", content=b'{"prompt": "hi"}', headers={"content-type": content_type})
    assert response.status_code == 200


def test_a_clients_request_id_comes_back_on_every_answer(http: httpx.Client) -> None:
    for method, path, body in (
        ("POST", CHAT, {"messages": user("hi")}),
        ("POST", CHAT, {"messages": user("hi"), "stream": True}),
        ("POST", CHAT, {}),
        ("GET", "/health", None),
        ("GET", "/nothing", None),
        ("DELETE", CHAT, None),
    ):
        response = http.request(method, path, json=body, headers={"x-request-id": "mine-1.2:3_4"})
        assert response.headers["x-request-id"] == "mine-1.2:3_4"


@pytest.mark.parametrize("given", [b"", b"a b", b"a" * 129, b"\xff\xfe", b"<script>", b"a,b", b'"'])
def test_a_request_id_that_could_do_harm_is_replaced(http: httpx.Client, given: bytes) -> None:
    headers = [(b"x-request-id", given)]
    made = {http.get("/health", headers=headers).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2 and all(re.fullmatch(r"req_[0-9a-f]{32}", one) for one in made)


def test_fields_that_nobody_knows_are_named(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi", "mood": 1}], "feel": 2}]
    for stream in (False, True):
        response = http.post(CHAT, json={"messages": messages, "stream": stream, "guided_wish": {"a": [1]}})
        assert response.status_code == 200
        ignored = response.headers["x-chatfleet-ignored"]
        assert set(ignored.split(", ")) == {"guided_wish", "messages[0].feel", "messages[0].content[0].mood"}
    assert "x-chatfleet-ignored" not in http.post(CHAT, json={"messages": user("hi")}).headers


@pytest.mark.parametrize(
    "name", ["a\r\nset-cookie: b=c", "a\x00b", "é", "\u2028", "a,b", " ", "", "x" * 100_000, "a: b\nc", "\x7f\x80"]
)
def test_an_unknown_fields_name_cannot_write_headers(http: httpx.Client, name: str) -> None:
    response = http.post(CHAT, json={"messages": user("hi"), "max_tokens": 1, name: 1})
    assert response.status_code == 200
    assert "set-cookie" not in response.headers
    assert re.fullmatch(r"[\x21-\x7e]*", response.headers.get("x-chatfleet-ignored", ""))
    assert len(response.headers.get("x-chatfleet-ignored", "")) <= 1024


def test_strict_refuses_fields_that_nobody_knows() -> None:
    with WorkerProcess("--engine", "simulated", "--strict") as worker, worker.http() as http:
        assert http.post(CHAT, json={"messages": user("hi"), "top_k": 3}).status_code == 200
        for stream in (False, True):
            request = {"messages": user("hi"), "stream": stream, "wish": 1}
            failed(http.post(CHAT, json=request), 400, param="wish", code="unknown_parameter")
        messages = [{"role": "user", "content": "hi", "mood": 1}]
        failed(http.post(CHAT, json={"messages": messages}), 400, param="messages[0].mood")


def test_curl_gets_an_answer_and_an_error(simulated_endpoint: Endpoint) -> None:
    def curl(data: str) -> str:
        url = f"{simulated_endpoint.url}/v1/completions"
        command = ["curl", "-sS", "-m", "60", url, "-H", "content-type: application/json", "-d", data]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert '"text_completion"' in curl('{"prompt": "hi"}')
    assert "[DONE]" in curl('{"prompt": "hi", "stream": true}')
    assert error_object(curl("{prompt}"))["type"] == "invalid_request_error"
