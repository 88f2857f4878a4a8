"""What a gateway adds to its workers: names, keys, CORS, headers, and errors when a worker fails."""

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx
import openai
import pytest

from support.fake_openai import FakeOpenAI, Reply, http_answer, stream_chunk, stream_head
from support.fleet import beat, until, worker_json
from support.processes import CommandProcess, ControllerProcess, GatewayProcess, WorkerProcess
from support.raw_upstream import ONE_TRY
from support.wire import PATIENCE_S, RawConnection, chat_texts, chunks, error_object, events, failed, user

CHAT = "/v1/chat/completions"
KEY, OTHER_KEY = "sk-first-key", "sk-second-key"
FORWARDED = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https"}


@pytest.fixture(scope="module")
def controller() -> Iterator[ControllerProcess]:
    """Two simulated workers: `one`, and `two` which is slow to begin."""
    with (
        ControllerProcess("--expiry", "600", "--heartbeat-interval", "1") as controller,
        WorkerProcess("one", "--engine", "simulated", "--controller-url", controller.url),
        WorkerProcess("two", "--engine", "simulated", "--sim-ttft-ms", "1500", "--controller-url", controller.url),
    ):
        yield controller


@pytest.fixture(scope="module")
def gateway(controller: ControllerProcess) -> Iterator[GatewayProcess]:
    arguments = ("--alias", "gpt-4o=one", "--alias", "lost=absent", "--keep-alive-interval", "0.3")
    with GatewayProcess(*arguments, controllers=[controller], models=["one", "two"]) as gateway:
        yield gateway


@pytest.fixture
def http(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with gateway.http() as client:
        yield client


_NUMBERS = count()


def ask(http: httpx.Client, model: str | None = "one", **fields: Any) -> httpx.Response:
    """Each time with another body: one that a worker broke off is quarantined."""
    named = {} if model is None else {"model": model}
    return http.post(CHAT, json={**named, "messages": user(f"hi {next(_NUMBERS)}"), "max_tokens": 4, **fields})


def test_every_model_of_the_fleet_is_one_endpoint(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()["data"]
    assert [card["id"] for card in listed] == ["gpt-4o", "one", "two"]
    assert all(card["object"] == "model" and card["created"] > 0 and card["max_model_len"] for card in listed)
    for name in ("one", "two"):
        assert ask(http, name).json()["model"] == name
        assert http.get(f"/v1/models/{name}").json()["id"] == name


def test_an_alias_is_asked_and_listed_as_a_model(http: httpx.Client) -> None:
    assert ask(http, "gpt-4o").json()["model"] == "one"
    assert chunks(ask(http, "gpt-4o", stream=True))[0]["model"] == "one"
    assert http.get("/v1/models/gpt-4o").json()["id"] == "gpt-4o"
    assert http.post("/v1/tokenize", json={"model": "gpt-4o", "prompt": "hi"}).json()["count"] == 2
    for name in ("lost", "absent"):
        error = failed(ask(http, name), 404, param="model", code="model_not_found")
        assert "`absent`" in error["message"] and f"`{name}`" in error["message"]


def test_an_unknown_model_is_a_404_that_names_what_is_served(http: httpx.Client) -> None:
    for response in (
        ask(http, "nobody"),
        ask(http, "nobody", stream=True),
        http.get("/v1/models/nobody"),
    ):
        error = failed(response, 404, param="model", code="model_not_found")
        assert all(f"`{name}`" in error["message"] for name in ("gpt-4o", "one", "two"))


def test_of_several_models_one_must_be_named(controller: ControllerProcess, http: httpx.Client) -> None:
    error = failed(ask(http, None), 400, param="model")
    assert "`one`" in error["message"] and "`two`" in error["message"]
    default = ("--default-model", "gpt-4o", "--alias", "gpt-4o=one")
    with GatewayProcess(*default, controllers=[controller], models=["one"]) as gateway, gateway.http() as client:
        assert ask(client, None).json()["model"] == ask(client, "").json()["model"] == "one"
        assert client.post("/v1/embeddings", json={"input": "hi"}).json()["model"] == "one"


def test_the_root_is_chat_completions(http: httpx.Client) -> None:
    answer = http.post("/", json={"model": "one", "messages": user("hi"), "stream": True})
    assert chat_texts(chunks(answer))[0]
    failed(http.get("/"), 405, code="method_not_allowed")


def test_silence_in_a_stream_is_filled_with_comments(http: httpx.Client, gateway: GatewayProcess) -> None:
    answer = ask(http, "two", stream=True).text
    assert answer.startswith(": keep-alive\n\n: keep-alive\n\n")
    rest = answer.replace(": keep-alive\n\n", "")
    assert rest == "".join(f"data: {data}\n\n" for data in events(rest)) and events(rest)[-1] == "[DONE]"
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="two", messages=[{"role": "user", "content": "hi"}], max_tokens=4, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)


# --- keys ---


@pytest.fixture(scope="module")
def locked(controller: ControllerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# for the second team\n{OTHER_KEY}\n\n")
    arguments = ("--api-key", KEY, "--api-keys-file", str(path), "--access-log")
    with GatewayProcess(*arguments, controllers=[controller], models=["one"], api_key=KEY) as gateway:
        yield gateway
        assert KEY not in gateway.output and OTHER_KEY not in gateway.output


def sdk(gateway: CommandProcess, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def test_a_right_key_is_let_in(locked: GatewayProcess) -> None:
    for key in (KEY, OTHER_KEY):
        with sdk(locked, key) as client:
            assert {"one", "two"} <= {model.id for model in client.models.list()}
            assert client.completions.create(model="one", prompt="hi", max_tokens=2).choices


def test_a_wrong_or_absent_key_is_not(locked: GatewayProcess) -> None:
    with sdk(locked, "sk-wrong") as client, pytest.raises(openai.AuthenticationError) as refused:
        client.chat.completions.create(model="one", messages=[{"role": "user", "content": "hi"}])
    assert refused.value.code == "invalid_api_key"
    with httpx.Client(base_url=locked.url) as client:
        for method, path in (
            ("GET", "/v1/models"),
            ("POST", CHAT),
            ("POST", "/"),
            ("GET", "/docs"),
            ("GET", "/nothing"),
        ):
            response = client.request(method, path)
            failed(response, 401, code="invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ready"):
            assert client.get(path).status_code == 200


def test_keys_may_come_from_the_environment(controller: ControllerProcess) -> None:
    env = {"CHATFLEET_API_KEYS": f"{KEY},{OTHER_KEY}"}
    with GatewayProcess(controllers=[controller], models=["one"], api_key=OTHER_KEY, env=env) as gateway:
        with httpx.Client(base_url=gateway.url) as client:
            failed(client.get("/v1/models"), 401)
        assert KEY not in gateway.output


def test_a_page_is_told_why_its_key_is_refused(locked: GatewayProcess) -> None:
    page = {"origin": "https://app.example", "access-control-request-method": "POST"}
    with httpx.Client(base_url=locked.url) as client:
        preflight = client.options(CHAT, headers={**page, "access-control-request-headers": "authorization"})
        assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == "*"
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        refused = client.post(CHAT, headers=page, json={})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "*"


# --- CORS ---


def preflight(http: httpx.Client, origin: str, method: str, header: str) -> httpx.Response:
    asked = {"origin": origin, "access-control-request-method": method, "access-control-request-headers": header}
    return http.options(CHAT, headers=asked)


def test_any_page_may_call_unless_told_otherwise(http: httpx.Client) -> None:
    answer = preflight(http, "https://a.example", "POST", "x-any")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    response = ask(http)
    assert "access-control-allow-origin" not in response.headers
    response = http.post(CHAT, json={"model": "one", "messages": user("hi")}, headers={"origin": "https://a.example"})
    assert response.headers["access-control-allow-origin"] == "*"
    assert "x-request-id" in response.headers["access-control-expose-headers"]


def test_pages_can_be_restricted(controller: ControllerProcess) -> None:
    arguments = ("--allowed-origins", "https://a.example", "--allowed-methods", "POST", "--allowed-headers", "x-one")
    with (
        GatewayProcess(*arguments, "--allow-credentials", controllers=[controller]) as gateway,
        gateway.http() as http,
    ):
        right = preflight(http, "https://a.example", "POST", "x-one")
        assert right.headers["access-control-allow-origin"] == "https://a.example"
        assert right.headers["access-control-allow-credentials"] == "true"
        for origin, method, header in (
            ("https://b.example", "POST", "x-one"),
            ("https://a.example", "DELETE", "x-one"),
            ("https://a.example", "POST", "x-two"),
        ):
            failed(preflight(http, origin, method, header), 400)


# --- HTTP ---


def test_there_is_exactly_one_host(gateway: GatewayProcess) -> None:
    for hosts in ((), ("host: a", "host: a"), ("host: a", "host: b")):
        with RawConnection(gateway.url) as connection:
            request = "\r\n".join(("GET /health HTTP/1.1", *hosts, "", ""))
            response = connection.send(request.encode()).read_response()
            assert response.status == 400 and "Host" in error_object(response.body)["message"]


def test_the_word_of_a_proxy_counts_if_it_is_trusted(controller: ControllerProcess) -> None:
    for trusted, client in ((), "127.0.0.1"), (("--trusted-proxies", "127.0.0.0/8"), "203.0.113.9"):
        with GatewayProcess("--access-log", *trusted, controllers=[controller]) as gateway, gateway.http() as http:
            http.get("/health?key=value", headers={**FORWARDED, "x-request-id": "here"})
            line = until(lambda: re.search(r"access: (.*here)$", gateway.output, re.MULTILINE), "a line of the log")
        assert re.fullmatch(rf"{re.escape(client)} GET /health 200 \d+\.\d+s here", line[1])


# --- what reaches a worker, and what comes back ---


class fleet_with:  # noqa: N801 - used as a function
    """A client of a gateway, with these `options`, before servers that are not ours."""

    def __init__(
        self, fake: FakeOpenAI, *others: FakeOpenAI, options: tuple[str, ...] = (), **registration: Any
    ) -> None:
        self._fake = fake
        self._fakes = (fake, *others)
        self._options = options
        self._registration = registration

    def __enter__(self) -> tuple[httpx.Client, GatewayProcess]:
        self._controller = ControllerProcess("--expiry", "600", "--heartbeat-interval", "500")
        with self._controller.http() as http:
            for fake in self._fakes:
                registered = http.post("/fleet/servers", json={"url": fake.url, **self._registration})
                assert registered.status_code == 200, registered.text
        names = [model["id"] for model in self._fake.models]
        self._gateway = GatewayProcess(*self._options, controllers=[self._controller], models=names)
        self._fake.requests.clear()
        self._http = self._gateway.http()
        return self._http, self._gateway

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._gateway.stop()
        self._controller.stop()


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeOpenAI]:
    with FakeOpenAI("one", api_key="sk-upstream") as fake:
        yield fake


@pytest.fixture(scope="module")
def foreign(fake: FakeOpenAI) -> Iterator[tuple[httpx.Client, GatewayProcess]]:
    with fleet_with(fake, api_key="sk-upstream", allowed_fields=["priority"]) as found:
        yield found


@pytest.fixture(scope="module")
def foreign_once(fake: FakeOpenAI) -> Iterator[tuple[httpx.Client, GatewayProcess]]:
    """Before the same server, and nothing is tried again."""
    with fleet_with(fake, api_key="sk-upstream", options=ONE_TRY) as found:
        yield found


@pytest.fixture(scope="module")
def foreign_commenting(fake: FakeOpenAI) -> Iterator[tuple[httpx.Client, GatewayProcess]]:
    """Before the same server, and silence is soon filled. Elsewhere it is not: a pause of the test would be silence."""
    with fleet_with(fake, api_key="sk-upstream", options=("--keep-alive-interval", "0.3")) as found:
        yield found


Foreign = tuple[httpx.Client, GatewayProcess]
SECRETS = {
    "authorization": "Bearer client-secret",
    "x-api-key": "client-secret",
    "cookie": "session=client-secret",
    "openai-organization": "client-secret",
    "x-chatfleet-resume": "client-secret",
    "host": "localhost",
    "origin": "http://localhost",
    "user-agent": "client-secret",
    "accept-encoding": "gzip",
    **FORWARDED,
}


def test_no_header_of_a_client_reaches_a_worker_but_the_allowed(fake: FakeOpenAI, foreign: Foreign) -> None:
    http, _ = foreign
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1"}
    http.post(CHAT, json={"model": "one", "messages": []}, headers={**SECRETS, **trace, "x-request-id": "req-1"})
    reached = fake.requests[-1]
    assert "client-secret" not in str(reached) and "203.0.113.9" not in str(reached)
    assert reached.pop("user-agent").startswith("chatfleet/")
    assert reached == {
        **trace,
        "x-request-id": "req-1",
        "x-chatfleet-hops": "1",
        "authorization": "Bearer sk-upstream",
        "host": fake.url.removeprefix("http://"),
        "content-type": "application/json",
        "content-length": str(len(fake.bodies[-1])),
    }


@pytest.mark.long
def test_a_gateway_that_is_its_own_worker_is_found_out() -> None:
    with FakeOpenAI("one") as fake, ControllerProcess() as controller, controller.http() as fleet:
        assert fleet.post("/fleet/servers", json={"url": fake.url}).status_code == 200
        with GatewayProcess(controllers=[controller], models=["one"]) as gateway, gateway.http() as http:
            assert fleet.post("/fleet/servers", json={"url": gateway.url}).status_code == 200
            json_type = {"content-type": "application/json"}
            assert fleet.delete("/fleet/servers", params={"url": fake.url}, headers=json_type).status_code == 200
            until(lambda: ask(http).status_code != 200, "only the gateway itself is left")
            for stream in (False, True):
                failed(ask(http, stream=stream), 508, code="loop_detected")


def test_our_own_workers_get_the_fleet_token_and_nothing_of_the_client(fake: FakeOpenAI) -> None:
    token = "a-token-of-the-fleet"
    env = {"CHATFLEET_FLEET_TOKEN": token}
    with ControllerProcess("--expiry", "600", env=env) as controller:
        with httpx.Client(base_url=controller.url, headers={"authorization": f"Bearer {token}"}) as http:
            beat(http, worker_json("w", fake.url, "ours"))
        with GatewayProcess(controllers=[controller], models=["ours"], env=env) as gateway, gateway.http() as http:
            http.post(CHAT, json={"model": "ours", "messages": []}, headers=SECRETS)
            assert token not in gateway.output
    assert fake.requests[-1]["authorization"] == f"Bearer {token}"
    assert "client-secret" not in str(fake.requests[-1])


def test_no_header_of_a_worker_reaches_a_client_but_the_allowed(fake: FakeOpenAI, foreign: Foreign) -> None:
    http, _ = foreign
    secrets = (
        "set-cookie: a=worker-secret",
        "server: worker-secret",
        "x-internal: worker-secret",
        "x-request-id: theirs",
    )
    fake.reply = lambda write: write(http_answer(b"{}", *secrets))
    answer = ask(http)
    assert answer.status_code == 200 and "worker-secret" not in str(answer.headers)
    assert answer.headers["x-request-id"] != "theirs"
    fake.reply = lambda write: write(http_answer(b"{}", *secrets, "retry-after: 7", status=429))
    answer = ask(http)
    assert answer.status_code == 429 and "worker-secret" not in str(answer.headers)
    assert answer.headers["retry-after"] == "7"
    fake.reply = lambda write: write(stream_head(*secrets) + stream_chunk(b"data: [DONE]\n\n") + stream_chunk(b""))
    assert "worker-secret" not in str(ask(http, stream=True).headers)


def test_a_server_that_is_not_ours_gets_no_field_that_reaches_into_it(fake: FakeOpenAI, foreign: Foreign) -> None:
    http, _ = foreign
    fake.reply = lambda write: write(http_answer(b"{}"))
    answer = ask(http, messages=user("hi"), chat_template="{{ 1 }}", kv_transfer_params={}, priority=1, top_k=5)
    assert json.loads(fake.bodies[-1]) == {
        "model": "one",
        "messages": user("hi"),
        "max_tokens": 4,
        "priority": 1,
        "top_k": 5,
    }
    assert answer.headers["x-chatfleet-ignored"] == "chat_template, kv_transfer_params"


@pytest.mark.parametrize(
    ("status", "body", "message", "kind", "code"),
    [
        (400, b'{"error": {"message": "m", "type": "t", "param": "p", "code": 400}}', "m", "t", "400"),
        (404, b'{"object": "error", "message": "m", "type": "t", "code": null}', "m", "t", None),
        (422, b'{"detail": "m"}', "m", "invalid_request_error", None),
        (500, b'{"error": "m"}', "m", "server_error", None),
        (503, b"m", "m", "server_error", None),
        (500, b"", "", "server_error", None),
    ],
)
def test_errors_of_other_servers_get_the_one_form(
    fake: FakeOpenAI, foreign: Foreign, status: int, body: bytes, message: str, kind: str, code: str | None
) -> None:
    http, _ = foreign
    fake.reply = lambda write: write(http_answer(body, status=status, content_type="text/plain"))
    fake.bodies.clear()
    for stream in (False, True):
        error = failed(ask(http, stream=stream), status)
        assert (error["type"], error["code"]) == (kind, code) and message in error["message"]
    assert len(fake.bodies) == 2, "an answer, even one of 503, is not asked for again where there is no other server"


WHOLE: Reply = lambda write: write(http_answer(b"{}"))  # noqa: E731
STREAMED: Reply = lambda write: write(  # noqa: E731
    stream_head() + stream_chunk(b"data: [DONE]\n\n") + stream_chunk(b"")
)
NO_ANSWERS: dict[str, Callable[[Callable[[bytes], object]], object]] = {
    "the gateway's own key is wrong": lambda write: write(http_answer(b'{"error": "key"}', status=401)),
    "a redirect": lambda write: write(http_answer(b"", "location: http://127.0.0.1:9/", status=307)),
    "a page": lambda write: write(http_answer(b"<html>", content_type="text/html")),
    "no content": lambda write: write(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "a status that is none": lambda write: write(http_answer(b"{}", status=600)),
    "a compressed answer": lambda write: write(http_answer(b"{}", "content-encoding: gzip")),
    "garbage": lambda write: write(b"\x00\x01garbage\r\n\r\n"),
    "a broken stream": lambda write: write(stream_head() + b"zz\r\nno chunk"),
}
BROKEN_OFF: dict[str, Callable[[Callable[[bytes], object]], object]] = {
    "nothing": lambda write: None,
    "half a head": lambda write: write(b"HTTP/1.1 200 OK\r\ncontent-type: appl"),
    "half a body": lambda write: write(http_answer(b"{}").replace(b"length: 2", b"length: 200")),
}


@pytest.mark.parametrize("case", NO_ANSWERS)
def test_an_answer_that_is_none_is_a_502(fake: FakeOpenAI, foreign: Foreign, case: str) -> None:
    http, gateway = foreign
    fake.reply = NO_ANSWERS[case]
    fake.bodies.clear()
    for stream in (False, True):
        failed(ask(http, stream=stream), 502, code="worker_failed")
    assert len(fake.bodies) == 4, "each was sent again once"
    assert "sk-upstream" not in gateway.output


@pytest.mark.parametrize("case", BROKEN_OFF)
def test_a_request_that_a_server_breaks_off_twice_is_a_500_and_sent_no_more(
    fake: FakeOpenAI, foreign: Foreign, case: str
) -> None:
    http, gateway = foreign
    fake.reply = BROKEN_OFF[case]
    for stream in (False, True):
        fake.bodies.clear()
        number = next(_NUMBERS)
        for _ in range(2):
            answer = ask(http, stream=stream, messages=user(f"deadly {number}"))
            failed(answer, 500, code="worker_crashed")
            assert answer.headers["x-should-retry"] == "false"
        assert len(fake.bodies) == 2, "twice, and not at all when it came again"
    assert "sk-upstream" not in gateway.output


@pytest.mark.parametrize("case", ["garbage", *BROKEN_OFF])
def test_an_answer_that_is_good_the_second_time_is_the_answer(fake: FakeOpenAI, foreign: Foreign, case: str) -> None:
    http, _ = foreign
    for stream in (False, True):
        replies = iter([{**NO_ANSWERS, **BROKEN_OFF}[case], STREAMED if stream else WHOLE])
        fake.reply = lambda write, replies=replies: next(replies)(write)  # type: ignore[misc]
        assert ask(http, stream=stream).status_code == 200
        assert next(replies, None) is None


def test_a_worker_that_breaks_off_inside_a_stream_ends_it_with_an_error(
    fake: FakeOpenAI, foreign_once: Foreign
) -> None:
    """Where nobody may go on with it."""
    http, gateway = foreign_once
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "one"}
    delta = {"index": 0, "delta": {"role": "assistant", "content": "half"}, "finish_reason": None}
    event = b"data: " + json.dumps({**chunk, "choices": [delta]}).encode() + b"\r\n\r\n"

    def reply(write: Callable[[bytes], object]) -> None:
        write(stream_head() + stream_chunk(event))
        time.sleep(0.1)
        write(b"ffff\r\ndata: {")

    fake.reply = reply
    first, last = events(ask(http, stream=True).text)
    assert json.loads(first)["choices"] == [delta]
    assert error_object(last)["code"] == "worker_failed"
    with sdk(gateway, "none") as client:
        stream = client.chat.completions.create(model="one", messages=[{"role": "user", "content": "hi"}], stream=True)
        assert next(iter(stream)).choices[0].delta.content == "half"
        with pytest.raises(openai.APIError, match="broke off"):
            next(iter(stream))


def test_a_stream_whose_end_may_be_the_workers_death_is_no_whole_answer(
    fake: FakeOpenAI, foreign_once: Foreign
) -> None:
    http, _ = foreign_once
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    for rest in (b"data: 2\n\n", b'data: {"half'):
        fake.reply = lambda write, rest=rest: write(head + b"data: 1\n\n" + rest)  # type: ignore[misc]
        assert error_object(events(ask(http, stream=True).text)[-1])["code"] == "worker_failed"
    fake.reply = lambda write: write(head + b"data: 1\n\ndata: [DONE]\n\n")
    assert events(ask(http, stream=True).text) == ["1", "[DONE]"]


@pytest.mark.long
def test_an_error_after_the_first_comment_is_an_event(fake: FakeOpenAI, foreign_commenting: Foreign) -> None:
    """The status has gone out by then. (The worker takes as long to refuse as to begin.)"""
    http, _ = foreign_commenting
    fake.reply = lambda write: (time.sleep(1), write(http_answer(b'{"detail": "no"}', status=400)))
    answer = ask(http, stream=True)
    assert answer.status_code == 200
    *comments, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert comments and set(comments) == {": keep-alive"}
    assert error_object(last.removeprefix("data: "))["message"] == "no"


def test_only_what_can_stream_is_kept_alive(fake: FakeOpenAI, foreign_commenting: Foreign) -> None:
    http, _ = foreign_commenting
    fake.reply = lambda write: (time.sleep(1), write(http_answer(b"{}")))
    answer = http.post("/v1/embeddings", json={"model": "one", "input": "hi", "stream": True})
    assert answer.status_code == 200 and answer.json() == {}


def test_events_are_framed_as_openai_frames_them_whatever_the_worker_does(fake: FakeOpenAI, foreign: Foreign) -> None:
    http, _ = foreign
    pieces = (b'data: {"a"', b": 1}\r", b"\n\r", b"\ndata: 2\n\ndata: [DO", b"NE]")

    def reply(write: Callable[[bytes], object]) -> None:
        write(stream_head())
        for piece in pieces:
            write(stream_chunk(piece))
            time.sleep(0.02)
        write(stream_chunk(b""))

    fake.reply = reply
    assert ask(http, stream=True).content == b'data: {"a": 1}\n\ndata: 2\n\ndata: [DONE]\n\n'


@pytest.mark.long
def test_a_server_that_is_down_for_too_long_is_a_502_and_one_that_is_back_answers() -> None:
    with FakeOpenAI("one") as fake, fleet_with(fake, options=("--retry-timeout", "0.1")) as (http, _):
        fake.stop()
        for stream in (False, True):
            failed(ask(http, stream=stream), 502, code="worker_failed")
        fake.start()
        assert ask(http).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.long
def test_a_request_waits_for_a_server_that_is_down_for_a_moment(stream: bool) -> None:
    options = ("--retry-timeout", str(PATIENCE_S))
    with (
        FakeOpenAI("one") as fake,
        fleet_with(fake, options=options) as (http, gateway),
        ThreadPoolExecutor() as pool,
    ):
        fake.stop()
        answer = pool.submit(ask, http, stream=stream)
        until(lambda: f"at {fake.url} failed a request" in gateway.output, "it was not reached")
        assert not answer.done()
        fake.reply = STREAMED if stream else WHOLE
        fake.start()
        assert answer.result(timeout=PATIENCE_S).status_code == 200
        assert len(fake.bodies) == 1


def test_a_worker_that_cannot_be_reached_is_no_loss_while_another_can() -> None:
    with FakeOpenAI("one") as dead, FakeOpenAI("one") as fake, fleet_with(fake, dead) as (http, gateway):
        dead.stop()
        for stream in (False, True):
            fake.reply = STREAMED if stream else WHOLE
            assert {ask(http, stream=stream).status_code for _ in range(20)} == {200}
        until(lambda: f"at {dead.url} failed a request" in gateway.output, "the log names it")


def test_a_client_that_leaves_frees_the_worker(fake: FakeOpenAI, foreign: Foreign) -> None:
    http, gateway = foreign
    left: list[bool] = []

    def reply(write: Callable[[bytes], object]) -> None:
        write(stream_head())
        deadline = time.monotonic() + PATIENCE_S
        try:
            while time.monotonic() < deadline:
                write(stream_chunk(b"data: 1\n\n"))
                time.sleep(0.01)
        except OSError:
            left.append(True)

    fake.reply = reply
    with http.stream("POST", CHAT, json={"model": "one", "messages": user("hi"), "stream": True}) as response:
        next(response.iter_lines())
    until(lambda: left, "the worker notices")
