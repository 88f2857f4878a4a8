"""Requests that two parsers could read in two ways are refused, in the one error form, and the connection ends.

All our servers share the protocol, so all are asked: what a gateway forwards, what it answers itself, a worker, and a
controller.
"""

import threading
from collections.abc import Callable, Iterator

import pytest

from support.http_shapes import CHUNKS, LINES, REQUEST_LENGTHS
from support.processes import WorkerProcess
from support.raw_upstream import CHAT, COMPLETIONS, EMBEDDINGS, RawFleet, ask, hot
from support.wire import PATIENCE_S, RawConnection, RawResponse, error_object, head

TARGETS = {
    "forwarded": ("POST", CHAT),
    "embeddings": ("POST", EMBEDDINGS),
    "a path without a worker": ("GET", "/v1/models"),
    "no path": ("POST", "/nothing"),
    "worker": ("POST", COMPLETIONS),
    "controller": ("GET", "/fleet/snapshot"),
}
START_LINES = {
    "a tab": b"POST\t/v1/chat/completions HTTP/1.1",
    "a space in the target": b"POST /v1/chat completions HTTP/1.1",
    "NUL in the target": b"POST /v1/chat\x00/completions HTTP/1.1",
    "no target": b"POST HTTP/1.1",
    "no version": b"POST /v1/chat/completions",
    "HTTP/2": b"POST /v1/chat/completions HTTP/2.0",
    "a version of two digits": b"POST /v1/chat/completions HTTP/1.10",
    "a name before the version that is not HTTP": b"POST /v1/chat/completions HTTQ/1.1",
    "a method of lower case": b"post /v1/chat/completions HTTP/1.1",
    "a line folded under it": b"POST /v1/chat/completions HTTP/1.1\r\n x: y",
}

Url = Callable[[str], str]


def refused(response: RawResponse, status: int = 400, code: str | None = None) -> None:
    assert response.status == status, response
    assert response.headers["content-type"] == "application/json"
    assert response.headers["connection"] == "close" and response.headers["x-request-id"]
    error = error_object(response.body)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess("--engine", "simulated") as worker:
        yield worker
        assert worker.alive() and "Traceback" not in worker.output


@pytest.fixture
def url_of(fleet: RawFleet, worker: WorkerProcess) -> Url:
    others = {"worker": worker.url, "controller": fleet.controller.url}
    return lambda target: others.get(target, fleet.gateway.url)


def request(target: str, lines: bytes, body: bytes = b"") -> bytes:
    method, path = TARGETS[target]
    start = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return start.encode() + lines + b"\r\n\r\n" + body


def assert_refused(url: str, data: bytes) -> None:
    with RawConnection(url) as connection:
        refused(connection.send(data).read_response())
        assert connection.rest() == b""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", REQUEST_LENGTHS)
def test_an_ambiguous_length_is_refused(fleet: RawFleet, url_of: Url, target: str, shape: str) -> None:
    body = b"0\r\n\r\n" + head("GET", "/smuggled")
    assert_refused(url_of(target), request(target, REQUEST_LENGTHS[shape], body))
    assert not fleet.upstream.calls


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", CHUNKS)
def test_a_body_that_is_not_chunked_as_it_says_is_refused(
    fleet: RawFleet, url_of: Url, target: str, shape: str
) -> None:
    assert_refused(url_of(target), request(target, b"transfer-encoding: chunked", CHUNKS[shape]))
    assert not fleet.upstream.calls


@pytest.mark.parametrize("target", ["forwarded", "embeddings", "worker"])
def test_a_huge_chunk_extension_is_refused(fleet: RawFleet, url_of: Url, target: str) -> None:
    """Only where the body is waited for: other paths may have answered by the time that it gets too long."""
    body = b"2;" + b"a" * 2**18 + b"\r\n{}\r\n0\r\n\r\n"
    assert_refused(url_of(target), request(target, b"transfer-encoding: chunked", body))
    assert not fleet.upstream.calls


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", LINES)
def test_a_header_line_that_is_none_is_refused(fleet: RawFleet, url_of: Url, target: str, shape: str) -> None:
    for lines in (LINES[shape] + b"\r\ncontent-length: 2", b"content-length: 2\r\n" + LINES[shape]):
        assert_refused(url_of(target), request(target, lines, b"{}"))
    assert not fleet.upstream.calls


@pytest.mark.parametrize("shape", START_LINES)
def test_a_request_line_that_is_none_is_refused(fleet: RawFleet, shape: str) -> None:
    lines = b"\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    assert_refused(fleet.gateway.url, START_LINES[shape] + lines)


@pytest.mark.parametrize("target", TARGETS)
def test_a_head_of_bare_line_feeds_is_refused(url_of: Url, target: str) -> None:
    good = request(target, b"content-length: 2")
    assert_refused(url_of(target), good.replace(b"\r\n", b"\n") + b"{}")
    assert_refused(url_of(target), good.removesuffix(b"\r\n") + b"\n{}")


def test_a_transfer_encoding_in_http_1_0_is_refused(fleet: RawFleet) -> None:
    data = request("forwarded", b"transfer-encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n")
    assert_refused(fleet.gateway.url, data.replace(b"HTTP/1.1", b"HTTP/1.0", 1))


def test_what_no_request_is_gets_the_error_form_too(url_of: Url) -> None:
    for target in ("forwarded", "worker", "controller"):
        for data in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"hello\r\n\r\n",
            b"\x00",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ):
            assert_refused(url_of(target), data)


def test_good_requests_before_a_bad_one_are_answered_first(fleet: RawFleet) -> None:
    bad = request("forwarded", REQUEST_LENGTHS["both lengths given"], b"0\r\n\r\n")
    for stream in (False, True):
        data = hot(ask(stream)) + head("GET", "/health") + hot(ask(stream)) + bad + head("GET", "/health")
        with fleet.connect() as connection:
            connection.send(data)
            responses = [connection.read_response() for _ in range(4)]
            assert [response.status for response in responses] == [200, 200, 200, 400]
            assert "connection" not in responses[0].headers
            refused(responses[-1])
            assert connection.rest() == b""


def test_a_bad_request_behind_a_slow_one_waits_for_it(fleet: RawFleet) -> None:
    gate = threading.Event()
    fleet.upstream.script = lambda call: (gate.wait(PATIENCE_S), call.serve())
    with fleet.connect() as connection:
        connection.send(hot(ask()))
        fleet.upstream.until_called()
        connection.send(request("forwarded", LINES["NUL in a value"]))
        gate.set()
        assert connection.read_response().status == 200
        refused(connection.read_response())
        assert connection.rest() == b""


def test_a_client_that_sends_on_gets_its_refusal_and_no_reset(url_of: Url) -> None:
    for target in ("forwarded", "a path without a worker", "worker", "controller"):
        with RawConnection(url_of(target)) as connection:
            connection.send(request(target, REQUEST_LENGTHS["two lengths"]))
            for _ in range(8):
                connection.send(b"x" * 2**17)
            refused(connection.read_response())
            assert connection.rest() == b""


# --- what only looks strange ---


def test_what_is_allowed_is_not_refused(fleet: RawFleet) -> None:
    body = b'{"model": "one", "messages": []}'
    framings = {
        b"Content-Length: %d" % len(body): body,
        b"content-length:%d" % len(body): body,
        b"content-length: \t %d \t" % len(body): body,
        b"content-length: 00%d" % len(body): body,
        b"TRANSFER-ENCODING: Chunked": b"%X\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        b"transfer-encoding:chunked": b'000%x;name=value;other="quoted"\r\n%b\r\n000\r\n\r\n' % (len(body), body),
        b"x-empty:\r\nx-latin: \xe4\r\ncontent-length: %d" % len(body): body,
    }
    with fleet.connect() as connection:
        for lines, content in framings.items():
            response = connection.send(request("forwarded", lines, content)).read_response()
            assert response.status == 200, (lines, response)
        assert connection.send(b"\r\n" + head("GET", "/health")).read_response().status == 200
    assert [call.body for call in fleet.upstream.calls] == [body] * len(framings)


TRAILED = b'{"model": "one", "messages": []}'


def trailed(trailers: bytes) -> bytes:
    content = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(TRAILED), TRAILED, trailers)
    return request("forwarded", b"transfer-encoding: chunked\r\nx-request-id: real", content)


def test_fields_behind_a_chunked_body_are_dropped(fleet: RawFleet) -> None:
    trailers = b"x-request-id: smuggled\r\ntraceparent: smuggled\r\nhost: smuggled\r\n"
    with fleet.connect() as connection:
        for _ in range(2):
            assert connection.send(trailed(trailers)).read_response().headers["x-request-id"] == "real"
            assert connection.send(head("GET", "/health")).read_response().status == 200
    assert [call.body for call in fleet.upstream.calls] == [TRAILED] * 2
    assert "smuggled" not in str([call.header_lines for call in fleet.upstream.calls])


@pytest.mark.parametrize(
    "trailer",
    [b"content-length: 5", b"transfer-encoding: chunked", b"transfer-encoding: gzip", b"connection: close"],
)
def test_a_framing_behind_a_chunked_body_changes_none(fleet: RawFleet, trailer: bytes) -> None:
    """It may be refused instead, and the connection may end: but nobody waits for an answer."""
    with fleet.connect() as connection:
        connection.send(trailed(trailer + b"\r\n") + head("GET", "/health", "x-request-id: next"))
        first, *others = connection.end_sending().read_responses()
    if first.status == 200:
        assert [response.headers["x-request-id"] for response in others] in ([], ["next"])
        assert fleet.upstream.calls[0].body == TRAILED
    else:
        refused(first)
        assert not others
