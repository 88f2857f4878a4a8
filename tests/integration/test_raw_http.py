"""What no well-behaved HTTP client sends: broken heads, half requests, pipelines, huge bodies."""

import httpx
import pytest

from support.processes import Endpoint
from support.wire import RawConnection, RawResponse, error_object, head, user

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CHUNKED = "transfer-encoding: chunked"


def refused(response: RawResponse, status: int = 400) -> None:
    assert response.status == status, response
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert error_object(response.body)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nname\x00: value\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked, gzip\r\n\r\n{}",
    ],
)
def test_what_is_not_http_gets_an_error_object(http: httpx.Client, simulated_endpoint: Endpoint, data: bytes) -> None:
    with RawConnection(simulated_endpoint.url) as connection:
        response = connection.send(data).read_response()
        refused(response)
        assert response.headers["connection"] == "close" and connection.at_end()


def test_a_chunk_that_is_none_ends_the_request(http: httpx.Client, simulated_endpoint: Endpoint) -> None:
    with RawConnection(simulated_endpoint.url) as connection:
        connection.send(head("POST", COMPLETIONS, CHUNKED) + b"zz\r\n{}\r\n")
        refused(connection.read_response())
        assert connection.at_end()


def test_a_head_without_end_is_refused_long_before_it_fills_the_memory(
    http: httpx.Client, simulated_endpoint: Endpoint
) -> None:
    for start in (b"GET /", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\n"):
        with RawConnection(simulated_endpoint.url) as connection:
            connection.send(start)
            sent = 0
            piece = b"x: y\r\n" * 1000 if start.endswith(b"1\r\n") else b"x" * 6000
            try:
                while sent < 2**26:
                    connection.send(piece)
                    sent += len(piece)
            except ConnectionError:
                pass
            assert sent < 2**26


def test_a_large_but_bounded_head_is_fine(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-large": "x" * 30_000}).status_code == 200


def test_garbage_behind_a_running_stream_is_refused_once_that_is_complete(paced_endpoint: Endpoint) -> None:
    with RawConnection(paced_endpoint.url) as connection:
        connection.post(CHAT, {"messages": user("hi"), "stream": True, "ignore_eos": True, "max_tokens": 20})
        connection.read_head()
        next(connection.read_chunks())
        connection.send(b"\x00garbage\r\n\r\n")
        stream, _, refusal = connection.rest().partition(b"HTTP/1.1 ")
    assert b"data: [DONE]" in stream and stream.endswith(b"\r\n0\r\n\r\n")
    assert refusal.startswith(b"400 ")


def test_a_body_may_come_in_pieces_of_any_size(simulated_endpoint: Endpoint) -> None:
    body = b'{"prompt": "h\xc3\xa9", "max_tokens": 4}'
    with RawConnection(simulated_endpoint.url) as connection:
        for data in (head("POST", COMPLETIONS, f"content-length: {len(body)}") + body).splitlines(keepends=True):
            connection.send(data)
        whole = connection.read_response()
        pieces = b"".join(b"1\r\n%b\r\n" % bytes([byte]) for byte in body) + b"0\r\n\r\n"
        chunked = connection.send(head("POST", COMPLETIONS, CHUNKED) + pieces).read_response()
    assert whole.status == chunked.status == 200


def test_pipelined_requests_are_answered_in_order(simulated_endpoint: Endpoint) -> None:
    with RawConnection(simulated_endpoint.url) as connection:
        connection.post(COMPLETIONS, {"prompt": "a"}, "x-request-id: first")
        connection.post(CHAT, {"messages": user("b"), "stream": True}, "x-request-id: second")
        connection.send(head("GET", "/health", "x-request-id: third"))
        connection.post(COMPLETIONS, b"{", "x-request-id: fourth")
        answers = [connection.read_response() for _ in range(4)]
    assert [answer.headers["x-request-id"] for answer in answers] == ["first", "second", "third", "fourth"]
    assert [answer.status for answer in answers] == [200, 200, 200, 400]
    assert answers[1].body.endswith(b"data: [DONE]\n\n")


def test_a_client_that_waits_for_100_continue_is_told_to_go_on(simulated_endpoint: Endpoint) -> None:
    body = b'{"prompt": "hi"}'
    with RawConnection(simulated_endpoint.url) as connection:
        connection.send(head("POST", COMPLETIONS, f"content-length: {len(body)}", "expect: 100-continue"))
        assert connection.read_head() == (100, {})
        assert connection.send(body).read_response().status == 200
        connection.send(head("POST", COMPLETIONS, f"content-length: {2**40}", "expect: 100-continue"))
        refused(connection.read_response(), 413)


def test_an_old_http_version_and_an_upgrade_are_answered(simulated_endpoint: Endpoint) -> None:
    with RawConnection(simulated_endpoint.url) as connection:
        connection.send(b"GET /health HTTP/1.0\r\n\r\n")
        assert connection.read_response().status == 200 and connection.at_end()
    body = b'{"prompt": "hi"}'
    for protocol in ("h2c", "websocket"):
        upgrade = ("connection: upgrade, http2-settings", f"upgrade: {protocol}", "http2-settings: AAMAAABk")
        with RawConnection(simulated_endpoint.url) as connection:
            assert connection.post(COMPLETIONS, body, *upgrade).read_response().status == 200


@pytest.mark.long
def test_a_body_of_31_mb_is_read(http: httpx.Client) -> None:
    """Valid, and huge in the ways there are: one text, many small values, many unknown fields."""
    size = 31 * 2**20
    ok = http.post(COMPLETIONS, json={"prompt": "hi", "user": "x" * size}, timeout=120)
    assert ok.status_code == 200
    ignored = http.post(COMPLETIONS, json={"prompt": "hi", "wish": [0] * (size // 3)}, timeout=120)
    assert ignored.headers["x-chatfleet-ignored"] == "wish"
    assert http.post(CHAT, json={"messages": user("x" * size)}, timeout=120).status_code == 400
    too_long = http.post(COMPLETIONS, json={"prompt": "x" * size}, timeout=120)
    assert too_long.json()["error"]["code"] == "context_length_exceeded"


def test_a_body_over_32_mb_is_a_413_however_it_is_declared(http: httpx.Client, simulated_endpoint: Endpoint) -> None:
    with RawConnection(simulated_endpoint.url) as connection:
        refused(connection.send(head("POST", CHAT, f"content-length: {2**25 + 1}")).read_response(), 413)
    with RawConnection(simulated_endpoint.url) as connection:
        connection.send(head("POST", CHAT, CHUNKED))
        for _ in range(33):
            connection.send(b"%x\r\n%b\r\n" % (2**20, b" " * 2**20))
        refused(connection.read_response(), 413)
    assert http.post(CHAT, content=b" " * (2**25 + 1), headers={"content-type": "application/json"}).status_code == 413


@pytest.mark.parametrize(("levels", "status"), [(63, 200), (64, 400), (100_000, 400), (10_000_000, 400)])
def test_nesting_is_bounded_at_64(http: httpx.Client, levels: int, status: int) -> None:
    body = b'{"prompt": "hi", "wish": ' + b"[" * levels + b"]" * levels + b"}"
    response = http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    if status == 400:
        assert "64" in error_object(response.content)["message"]


ATTACKS = {
    "a text that never ends": b"[" * 65 + b'"' + b'\\"' * 1_000_000,
    "millions of texts": b'{"prompt": ["a' + b'","' * 1_000_000 + b'"], "x": [' + b"[]," * 99 + b"1]}",
    "millions of wrong values": b'{"prompt": [' + b"null," * 1_000_000 + b"null]}",
    "millions of wrong messages": b'{"prompt": 1, "messages": [' + b"null," * 1_000_000 + b"null]}",
    "millions of wrong parts": b'{"prompt": 1, "messages": [{"role": "user", "content": ['
    + b"{}," * 1_000_000
    + b"{}]}]}",
    "many wrong biases": b'{"prompt": 1, "messages": [], "logit_bias": {'
    + b",".join(b'"a%d":1' % number for number in range(200_000))
    + b"}}",
    "a number of a million digits": b'{"prompt": "a", "max_tokens": ' + b"9" * 1_000_000 + b"}",
    "many unknown fields": b'{"prompt": 1, ' + b",".join(b'"a%d":1' % number for number in range(200_000)) + b"}",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_body_made_to_be_costly_is_refused_while_others_are_served(
    http: httpx.Client, simulated_endpoint: Endpoint, attack: str
) -> None:
    for path in (CHAT, COMPLETIONS):
        with RawConnection(simulated_endpoint.url) as connection:
            connection.post(path, ATTACKS[attack])
            assert http.post(COMPLETIONS, json={"prompt": "hi"}).status_code == 200
            refused(connection.read_response())


def test_a_half_request_that_is_dropped_harms_nobody(http: httpx.Client, simulated_endpoint: Endpoint) -> None:
    request = head("POST", CHAT, "content-length: 80") + b'{"messages": [{"role": "user", "content": "'
    for end in range(1, len(request), 7):
        with RawConnection(simulated_endpoint.url) as connection:
            connection.send(request[:end])
    assert http.post(COMPLETIONS, json={"prompt": "hi"}).status_code == 200
    assert "Traceback" not in simulated_endpoint.output
