"""Connections to a gateway: kept alive, pipelined, of old versions, half closed and given up.

Requests for a worker are taken on another way through the gateway than all others; a connection may mix them.
"""

import json
import threading
import time
from collections.abc import Callable

import pytest

from support.fake_openai import stream_chunk, stream_head
from support.raw_upstream import CHAT, COMPLETIONS, EMBEDDINGS, Call, RawFleet, Script, ask, event, hot
from support.wire import PATIENCE_S, RawConnection, RawResponse, error_object, events, head

HOT_PATHS = [CHAT, COMPLETIONS, EMBEDDINGS, "/v1/tokenize", "/v1/detokenize", "/"]
COLD = {
    "GET /health": 200,
    "GET /v1/models": 200,
    "GET /v1/models/nobody": 404,
    "GET /docs": 200,
    "GET /nothing": 404,
    "GET /v1/chat/completions": 200,
    "DELETE /v1/embeddings": 405,
    "OPTIONS /v1/completions": 405,
    "HEAD /health": 200,
}


def named(request_id: str) -> str:
    return f"x-request-id: {request_id}"


def answered(response: RawResponse, request_id: str) -> None:
    """It is a good worker's answer to the request of that id."""
    assert response.status == 200, response
    assert response.headers["x-request-id"] == request_id
    if response.headers["content-type"].startswith("text/event-stream"):
        *texts, done = events(response.body)
        assert texts == ["1", "2", json.dumps({"id": request_id})] and done == "[DONE]"
    else:
        assert json.loads(response.body) == {"id": request_id}


# --- one connection for all ---


@pytest.mark.parametrize("path", HOT_PATHS)
def test_every_path_that_a_worker_answers_is_forwarded(fleet: RawFleet, path: str) -> None:
    body = {"model": "one", "prompt": "hi", "nobody knows": "é\u2028"}
    with fleet.connect() as connection:
        answered(connection.send(hot(body, named("a"), path=path)).read_response(), "a")
        answered(connection.send(hot(body, named("b"), path=f"{path}?key=value")).read_response(), "b")
        answered(connection.send(hot(body, named("c"), path=f"http://localhost{path}")).read_response(), "c")
    for call in fleet.upstream.calls:
        assert (call.method, call.target) == ("POST", CHAT if path == "/" else path)
        assert call.body == json.dumps(body).encode()


def test_one_connection_serves_requests_of_all_kinds(fleet: RawFleet) -> None:
    with fleet.connect() as connection:
        for turn in range(5):
            for stream in (False, True):
                for request, status in COLD.items():
                    method, path = request.split(" ")
                    connection.send(head(method, path, named("cold")))
                    assert connection.read_response(method).status == status
                    request_id = f"{turn}-{stream}-{status}"
                    connection.send(hot(ask(stream), named(request_id)))
                    answered(connection.read_response(), request_id)
    assert fleet.upstream.calls[-1].position == len(fleet.upstream.calls), "the worker's connection is kept, too"


def test_fifty_pipelined_requests_are_answered_in_order(fleet: RawFleet) -> None:
    asked: list[tuple[str, int]] = []
    data = b""
    for number in range(50):
        kind = number % 5
        if kind == 1:
            method, path = list(COLD)[number % len(COLD)].split(" ")
            asked.append((method, COLD[f"{method} {path}"]))
            data += head(method, path, named(f"{number}"))
        elif kind == 3 and number % 2:
            asked.append(("POST", 400))
            data += hot(b'{"model": "one", ', named(f"{number}"))
        else:
            asked.append(("POST", 200))
            data += hot(ask(stream=kind == 2), named(f"{number}"))
    with fleet.connect() as connection:
        connection.send(data)
        for number, (method, status) in enumerate(asked):
            response = connection.read_response(method)
            assert (response.status, response.headers["x-request-id"]) == (status, f"{number}")
            if status == 200 and number % 5 != 1:
                answered(response, f"{number}")
        assert connection.send(head("GET", "/health")).read_response().status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_pipelined_behind_a_slow_answer_waits_for_it(fleet: RawFleet, stream: bool) -> None:
    gate = threading.Event()
    fleet.upstream.script = lambda call: (
        call.headers["x-request-id"] == "slow" and gate.wait(PATIENCE_S),
        call.serve(),
    )
    with fleet.connect() as connection:
        connection.send(
            hot(ask(stream), named("slow")) + head("GET", "/health", named("cold")) + hot(ask(), named("hot"))
        )
        fleet.upstream.until_called()
        connection.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.sock.recv(1)
        connection.sock.settimeout(PATIENCE_S)
        gate.set()
        answered(connection.read_response(), "slow")
        assert connection.read_response().headers["x-request-id"] == "cold"
        answered(connection.read_response(), "hot")


def test_a_stream_is_whole_before_the_next_answer_begins(fleet: RawFleet) -> None:
    gate = threading.Event()

    def in_two_parts(call: Call) -> None:
        call.send(stream_head(connection="keep-alive") + stream_chunk(event("1")))
        gate.wait(PATIENCE_S)
        call.send(stream_chunk(event("[DONE]")) + stream_chunk(b""))

    fleet.upstream.script = lambda call: in_two_parts(call) if call.json["stream"] else call.serve()
    with fleet.connect() as connection:
        connection.send(hot(ask(stream=True)) + head("GET", "/nothing") + hot(ask(), named("last")))
        status, _ = connection.read_head()
        chunks = connection.read_chunks()
        assert (status, next(chunks)) == (200, event("1"))
        gate.set()
        assert b"".join(chunks) == event("[DONE]")
        assert connection.read_response().status == 404
        answered(connection.read_response(), "last")


def test_requests_may_be_cut_anywhere(fleet: RawFleet) -> None:
    first, second = json.dumps(ask()).encode(), json.dumps(ask(stream=True)).encode()
    chunked = b"".join(b"1;a=b\r\n%b\r\n" % bytes([byte]) for byte in first) + b"0\r\nx: y\r\n\r\n"
    request = head("POST", CHAT, named("chunked"), "transfer-encoding: chunked") + chunked
    request += hot(second, named("length")) + head("GET", "/health", named("cold"))
    for size in (1, 7, 64, 100):
        with fleet.connect() as connection:
            for start in range(0, len(request), size):
                connection.send(request[start : start + size])
            answered(connection.read_response(), "chunked")
            answered(connection.read_response(), "length")
            assert connection.read_response().headers["x-request-id"] == "cold"
    assert [call.body for call in fleet.upstream.calls] == [first, second] * 4


def test_a_head_that_comes_again_says_nothing_of_how_its_body_comes(fleet: RawFleet) -> None:
    letters = iter("abcdefghijkl")

    def another() -> bytes:
        return hot(ask(user=next(letters)))

    with fleet.connect() as connection:
        first, second, in_half, by_byte, alone, pipelined, behind, last = (another() for _ in range(8))
        end_of_head = first.index(b"\r\n\r\n") + 4
        for pieces in (
            [first],
            [second],
            [in_half[:-9], in_half[-9:]],
            [by_byte[start : start + 1] for start in range(len(by_byte))],
            [alone[:end_of_head], alone[end_of_head:]],
            [pipelined + head("GET", "/health") + behind],
            [last],
        ):
            for piece in pieces:
                connection.send(piece)
                time.sleep(0.002)
            for answer in range(3 if pipelined in pieces[0] else 1):
                assert connection.read_response().status == 200, (pieces, answer)
        users = [call.json["user"] for call in fleet.upstream.calls]
        assert users == list("abcdefgh")
        assert connection.send(first[:-1]).end_sending().read_responses() == []
    assert len(fleet.upstream.calls) == 8


def test_a_head_that_comes_again_is_read_as_itself_whatever_came_between(fleet: RawFleet) -> None:
    chat, embeddings = hot(ask(), named("chat")), hot(ask(), named("embeddings"), path=EMBEDDINGS)
    for pieces in ([chat[:30], chat[30:]], [head("GET", "/health") + chat], [embeddings + chat]):
        with fleet.connect() as connection:
            answered(connection.send(embeddings).read_response(), "embeddings")
            for piece in pieces:
                connection.send(piece)
                time.sleep(0.01)
            if len(pieces) == 1:
                assert connection.read_response().status == 200
            answered(connection.read_response(), "chat")
            answered(connection.send(embeddings).read_response(), "embeddings")
            assert fleet.upstream.calls[-1].target == EMBEDDINGS


def test_a_body_of_any_size_arrives_byte_for_byte(fleet: RawFleet) -> None:
    with fleet.connect() as connection:
        for size in (0, 1, 65_535, 65_536, 300_000, 5_000_000):
            body = json.dumps(ask(user="x" * size)).encode()
            for chunk in (None, 10_000, 1_000_000):
                if chunk is None:
                    connection.send(hot(body))
                else:
                    pieces = [body[start : start + chunk] for start in range(0, len(body), chunk)]
                    connection.send(head("POST", CHAT, "transfer-encoding: chunked"))
                    connection.send(b"".join(map(stream_chunk, [*pieces, b""])))
                assert connection.read_response().status == 200
                assert fleet.upstream.calls[-1].body == body


def test_a_client_that_asks_for_the_end_gets_it(fleet: RawFleet) -> None:
    for request in (
        hot(ask(), "connection: close"),
        hot(ask(True), "connection: Close"),
        hot(b"{", "connection: close"),
    ):
        with fleet.connect() as connection:
            response = connection.send(request + head("GET", "/health")).read_response()
            assert response.headers["connection"] == "close" and connection.rest() == b""
    with fleet.connect() as connection:
        response = connection.send(head("GET", "/health", "connection: close")).read_response()
        assert response.headers["connection"] == "close" and connection.rest() == b""


# --- Expect ---


def test_a_body_that_waits_for_it_is_asked_for(fleet: RawFleet) -> None:
    body = json.dumps(ask()).encode()
    with fleet.connect() as connection:
        for framing, content in (
            (f"content-length: {len(body)}", body),
            ("transfer-encoding: chunked", stream_chunk(body) + stream_chunk(b"")),
        ):
            asked = len(fleet.upstream.calls)
            connection.send(head("POST", CHAT, framing, "Expect: 100-Continue", named("waited")))
            assert connection.read_head() == (100, {})
            assert len(fleet.upstream.calls) == asked, "the worker is asked with the body only"
            answered(connection.send(content).read_response(), "waited")
        connection.send(head("GET", "/health", "expect: 100-continue"))
        assert connection.read_response().status == 200
    assert all("expect" not in call.headers for call in fleet.upstream.calls)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head("POST", CHAT, "content-length: 99999999", "expect: 100-continue"), 413),
        (head("POST", CHAT, "content-length: 2, 3", "expect: 100-continue"), 400),
        (head("POST", "/nothing", "content-length: 5", "expect: 100-continue"), 404),
        (head("PUT", CHAT, "content-length: 5", "expect: 100-continue"), 405),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n",
            415,
        ),
        (
            b"POST / HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n",
            400,
        ),
    ],
)
def test_a_body_that_is_not_wanted_is_not_asked_for(fleet: RawFleet, request_head: bytes, status: int) -> None:
    with fleet.connect() as connection:
        assert connection.send(request_head).read_response().status == status
        assert connection.rest() == b"", "what would follow could be the body or the next request"


def test_http_1_0_knows_no_100(fleet: RawFleet) -> None:
    body = json.dumps(ask()).encode()
    request = head("POST", CHAT, f"content-length: {len(body)}", "expect: 100-continue").replace(b"/1.1", b"/1.0", 1)
    with fleet.connect() as connection:
        assert connection.send(request + body).read_response().status == 200
        assert connection.rest() == b""


# --- methods ---


@pytest.mark.parametrize("path", [*HOT_PATHS, "/health", "/v1/models", "/docs", "/openapi.json", "/nothing"])
def test_an_answer_to_head_has_no_body(fleet: RawFleet, path: str) -> None:
    with fleet.connect() as connection:
        connection.send(head("HEAD", path) + head("GET", "/health", named("next")))
        head_response = connection.read_response("HEAD")
        assert head_response.status in (200, 404, 405) and "x-request-id" in head_response.headers
        assert connection.read_response().headers["x-request-id"] == "next"


def test_options_are_answered_to_pages_and_to_others(fleet: RawFleet) -> None:
    page = ("origin: https://a.example", "access-control-request-method: POST", "access-control-request-headers: x-a")
    with fleet.connect() as connection:
        for path in (*HOT_PATHS, "/v1/models"):
            response = connection.send(head("OPTIONS", path, *page)).read_response()
            assert response.status == 200 and response.headers["access-control-allow-origin"] == "*"
            response = connection.send(head("OPTIONS", path)).read_response()
            assert response.status == 405 and "allow" in response.headers
            assert error_object(response.body)["code"] == "method_not_allowed"
        assert connection.send(b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").read_response().status < 500
    assert not fleet.upstream.calls


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "TRACE"])
def test_other_methods_are_refused_where_workers_answer(fleet: RawFleet, method: str) -> None:
    with fleet.connect() as connection:
        for path in HOT_PATHS:
            if (method, path) == ("GET", CHAT):  # lists what is stored
                continue
            connection.send(hot(ask(), path=path).replace(b"POST", method.encode(), 1))
            response = connection.read_response()
            assert response.status == 405
            assert response.headers["allow"] == ("GET, POST" if path == CHAT else "POST")
            assert error_object(response.body)["code"] == "method_not_allowed"
    assert not fleet.upstream.calls


# --- HTTP/1.0 ---


@pytest.mark.parametrize("stream", [False, True])
def test_an_http_1_0_client_is_answered_up_to_the_end_of_its_connection(fleet: RawFleet, stream: bool) -> None:
    with fleet.connect() as connection:
        connection.send(hot(ask(stream), named("old")).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        response = connection.read_response()
        assert "transfer-encoding" not in response.headers
        answered(response, "old")
        assert connection.rest() == b""


def test_an_http_1_0_client_needs_no_host_and_gets_errors_too(fleet: RawFleet) -> None:
    for request, status in ((b"GET /health HTTP/1.0\r\n\r\n", 200), (b"POST / HTTP/1.0\r\n\r\n", 415)):
        with fleet.connect() as connection:
            assert connection.send(request).read_response().status == status
            assert connection.rest() == b""


# --- clients that leave, wholly or by half ---


def after(seconds: float) -> Script:
    return lambda call: (call.body, threading.Event().wait(seconds), call.serve())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_client_that_has_said_all_gets_its_whole_answer(fleet: RawFleet, stream: bool, version: str) -> None:
    for seconds in (0.0, 1.5):
        fleet.upstream.script = after(seconds)
        with fleet.connect() as connection:
            connection.send(hot(ask(stream), named("half")).replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1))
            connection.end_sending()
            answered(connection.read_response(), "half")
            assert connection.rest() == b""


def test_all_that_was_pipelined_before_the_half_close_is_answered(fleet: RawFleet) -> None:
    fleet.upstream.script = after(0.2)
    requests = hot(ask(), named("a")) + head("GET", "/health") + hot(ask(True), named("b")) + head("GET", "/v1/models")
    with fleet.connect() as connection:
        responses = connection.send(requests).end_sending().read_responses()
    assert [response.status for response in responses] == [200] * 4
    answered(responses[0], "a")
    answered(responses[2], "b")


def test_half_a_request_before_the_half_close_is_the_end(fleet: RawFleet) -> None:
    for request in (hot(ask()), head("GET", "/health"), head("POST", CHAT, "transfer-encoding: chunked") + b"5\r\n{"):
        for cut in (1, 20, len(request) - 1):
            with fleet.connect() as connection:
                responses = connection.send(request[:cut]).end_sending().read_responses()
                assert [response.status for response in responses] in ([], [400])
    assert not fleet.upstream.calls


def test_a_request_cut_short_behind_others_is_the_end_once_they_are_answered(fleet: RawFleet) -> None:
    cut = (hot(ask())[:-1], head("POST", "/nothing", "content-length: 5") + b"1234", hot(ask())[:30])
    for whole_ones, expected in ((head("GET", "/health"), [200]), (hot(ask()) + head("GET", "/nothing"), [200, 404])):
        for request in cut:
            with fleet.connect() as connection:
                responses = connection.send(whole_ones + request).end_sending().read_responses()
            statuses = [response.status for response in responses]
            assert statuses == expected or (b"/nothing" in request and statuses == [*expected, 404])  # body or not
    assert len(fleet.upstream.calls) == len(cut)


@pytest.mark.parametrize("before", [head("GET", "/v1/models"), hot(ask())])
def test_what_is_no_chunk_is_refused_behind_other_answers_though_the_client_has_said_all(
    fleet: RawFleet, before: bytes
) -> None:
    for path in (CHAT, "/nothing"):
        with fleet.connect() as connection:
            connection.send(before + head("POST", path, "transfer-encoding: chunked") + b"zz\r\n")
            responses = connection.end_sending().read_responses()
        assert [response.status for response in responses] == [200, 400]
        assert responses[1].headers["connection"] == "close"


@pytest.mark.parametrize("behind", [hot(ask()), head("GET", "/health"), b"\0"])
def test_nothing_is_begun_behind_an_answer_that_ends_the_connection(fleet: RawFleet, behind: bytes) -> None:
    """In one read with it. The refusal does not wait for the body, of which it does not know the size."""
    refused = head("POST", CHAT, "transfer-encoding: chunked").replace(b"application/json", b"text/plain")
    for last in (refused + stream_chunk(b"{}") + stream_chunk(b""), hot(b"{", "connection: close")):
        with fleet.connect() as connection:
            responses = connection.send(last + behind).end_sending().read_responses()
        assert [response.status for response in responses] in ([415], [400])
        assert responses[0].headers["connection"] == "close"
    assert not fleet.upstream.calls


def test_a_request_that_waits_for_100_behind_another_one_is_answered(fleet: RawFleet) -> None:
    waiting = head("POST", "/nothing", "content-length: 5", "expect: 100-continue")
    with fleet.connect() as connection:
        responses = connection.send(head("GET", "/health") + waiting).read_responses()
    assert [response.status for response in responses] == [200, 404]


@pytest.mark.parametrize("end", [RawConnection.close, RawConnection.reset])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_worker(
    fleet: RawFleet, end: Callable[[RawConnection], None], begun: bool, stream: bool
) -> None:
    """`begun` answers have sent something when the client leaves."""
    whole_head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    first = stream_head() + stream_chunk(event("1")) if stream else whole_head

    def endless(call: Call) -> None:
        if begun:
            call.send(first)
        try:
            while begun and stream:  # while nothing is sent, who has left cannot be told from who has said all
                call.send(stream_chunk(event("2")))
                time.sleep(0.01)
        except OSError:
            pass
        call.until_left()

    fleet.upstream.script = endless
    connection = fleet.connect().send(hot(ask(stream)))
    call = fleet.upstream.until_called()
    if begun and stream:
        connection.read_head()
        assert next(connection.read_chunks()).startswith(event("1"))
    end(connection)
    fleet.until_left(call)


def test_a_client_that_leaves_frees_all_that_it_pipelined(fleet: RawFleet) -> None:
    fleet.upstream.script = lambda call: (call.body, call.until_left())
    connection = fleet.connect().send(hot(ask()) * 3 + head("GET", "/health") + hot(ask(True)))
    fleet.upstream.until_called()
    connection.reset()
    for call in fleet.upstream.calls:
        fleet.until_left(call)
    with fleet.connect() as connection:
        fleet.upstream.script = lambda call: call.serve()
        answered(connection.send(hot(ask(), named("next"))).read_response(), "next")
