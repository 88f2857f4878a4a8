"""Requests that are too large, and requests that are refused before all of them has come."""

import json
import time
from collections.abc import Iterator

import pytest

from support.fake_openai import stream_chunk
from support.raw_upstream import CHAT, EMBEDDINGS, RawFleet, ask, hot, raw_fleet
from support.wire import RawConnection, RawResponse, error_object, head

MAX_HEAD, MAX_BODY = 2**16, 2**25
TOO_LARGE = "x" * (MAX_HEAD + 2**15)
"""A bound may be noticed a little late."""
KEY = "authorization: Bearer sk-right"


def refused(response: RawResponse, status: int, code: str) -> None:
    assert response.status == status, response
    assert response.headers["content-type"] == "application/json" and response.headers["x-request-id"]
    error = error_object(response.body)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


def refused_for_good(connection: RawConnection, status: int, code: str) -> None:
    response = connection.read_response()
    refused(response, status, code)
    assert response.headers["connection"] == "close"
    assert connection.rest() == b""


# --- heads ---


@pytest.mark.parametrize("target", [("POST", CHAT), ("GET", "/v1/models")])
def test_a_head_over_64_kb_is_a_431(fleet: RawFleet, target: tuple[str, str]) -> None:
    method, path = target
    large = {
        "a value": head(method, path, "content-length: 2", "x: " + TOO_LARGE),
        "a name": head(method, path, "content-length: 2", TOO_LARGE + ": x"),
        "many": head(method, path, "content-length: 2", *["x-some: thing"] * (len(TOO_LARGE) // 15)),
        "a target": head(method, f"{path}?{TOO_LARGE}", "content-length: 2"),
    }
    for data in large.values():
        with fleet.connect() as connection:
            connection.send(data + b"{}")
            refused_for_good(connection, 431, "headers_too_large")
    assert not fleet.upstream.calls


def test_a_head_that_never_ends_is_a_431_and_what_follows_is_let_go(fleet: RawFleet) -> None:
    for start, piece in (
        (b"GET /", b"x" * 6000),
        (b"GET / HTTP/1.1\r\nx: ", b"x" * 6000),
        (b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 1000),
    ):
        with fleet.connect() as connection:
            connection.send(start)
            for _ in range(40):
                connection.send(piece)
            refused_for_good(connection, 431, "headers_too_large")


def test_a_large_head_below_the_limit_is_fine(fleet: RawFleet) -> None:
    with fleet.connect() as connection:
        for start in (head("GET", "/health"), hot(ask())):
            large = start.replace(b"\r\n", b"\r\nx: " + b"x" * (MAX_HEAD - 1000) + b"\r\n", 1)
            assert connection.send(large).read_response().status == 200


def test_bodies_and_other_heads_do_not_count(fleet: RawFleet) -> None:
    with fleet.connect() as connection:
        requests = [hot(ask(user="x" * 100_000)), head("GET", "/health", "x: " + "x" * 50_000)] * 4
        connection.send(b"".join(requests))
        assert [connection.read_response().status for _ in requests] == [200] * len(requests)
        connection.send(head("GET", "/health", "x: " + TOO_LARGE))
        refused_for_good(connection, 431, "headers_too_large")


def test_a_large_head_behind_good_requests_is_refused_after_their_answers(fleet: RawFleet) -> None:
    with fleet.connect() as connection:
        connection.send(hot(ask()) + hot(ask(True)) + head("GET", "/health", "x: " + TOO_LARGE) + hot(ask()))
        assert [connection.read_response().status for _ in range(2)] == [200, 200]
        refused_for_good(connection, 431, "headers_too_large")
    assert len(fleet.upstream.calls) == 2


# --- bodies ---


@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS, "/"])
def test_a_length_over_32_mb_is_a_413_before_the_body_comes(fleet: RawFleet, path: str) -> None:
    for length in (MAX_BODY + 1, 2**40, 2**62):
        with fleet.connect() as connection:
            connection.send(head("POST", path, f"content-length: {length}"))
            refused_for_good(connection, 413, "request_too_large")


def test_a_client_that_sends_its_large_body_all_the_same_gets_the_413(fleet: RawFleet) -> None:
    with fleet.connect() as connection:
        connection.send(head("POST", CHAT, f"content-length: {MAX_BODY + 1}"))
        for _ in range(4):
            connection.send(b" " * 2**20)
        refused_for_good(connection, 413, "request_too_large")


def test_chunks_of_over_32_mb_are_a_413(fleet: RawFleet) -> None:
    chunk = stream_chunk(b" " * 2**20)
    with fleet.connect() as connection:
        connection.send(head("POST", CHAT, "transfer-encoding: chunked"))
        for _ in range(33):
            connection.send(chunk)
        refused_for_good(connection, 413, "request_too_large")
    assert not fleet.upstream.calls


def test_a_body_of_32_mb_is_forwarded_however_it_comes(fleet: RawFleet) -> None:
    body = json.dumps(ask()).encode().ljust(MAX_BODY)
    with fleet.connect() as connection:
        assert connection.send(hot(body)).read_response().status == 200
        assert fleet.upstream.calls[-1].body == body
        connection.send(head("POST", CHAT, "transfer-encoding: chunked"))
        connection.send(stream_chunk(body[:1000]) + stream_chunk(body[1000:]) + stream_chunk(b""))
        assert connection.read_response().status == 200
        assert fleet.upstream.calls[-1].body == body


# --- refusals while the body is still to come ---


@pytest.fixture(scope="module")
def locked_for_module() -> Iterator[RawFleet]:
    with raw_fleet("--api-key", "sk-right", api_key="sk-right") as fleet:
        yield fleet


@pytest.fixture
def locked(locked_for_module: RawFleet) -> Iterator[RawFleet]:
    """A gateway that wants a key."""
    locked_for_module.upstream.forget()
    yield locked_for_module
    locked_for_module.assert_well()


EARLY = {
    "no key": ((), 401, "invalid_api_key"),
    "another key": (("authorization: Bearer sk-wrong",), 401, "invalid_api_key"),
    "two keys": ((KEY, KEY), 401, "invalid_api_key"),
    "a compressed body": ((KEY, "content-encoding: gzip"), 415, "unsupported_media_type"),
}


@pytest.mark.parametrize("case", EARLY)
def test_a_refusal_does_not_wait_for_the_body(locked: RawFleet, case: str) -> None:
    headers, status, code = EARLY[case]
    for framing in (f"content-length: {MAX_BODY}", "transfer-encoding: chunked"):
        with locked.connect() as connection:
            connection.send(head("POST", CHAT, framing, *headers))
            refused_for_good(connection, status, code)
    with locked.connect() as connection:
        connection.send(head("POST", CHAT, "content-length: 5", "expect: 100-continue", *headers))
        refused_for_good(connection, status, code)
    assert not locked.upstream.calls


@pytest.mark.parametrize("case", EARLY)
def test_a_refusal_leaves_the_connection_usable_where_the_body_is_small(locked: RawFleet, case: str) -> None:
    headers, status, code = EARLY[case]
    body = json.dumps(ask()).encode()
    with locked.connect() as connection:
        for _ in range(3):
            connection.send(head("POST", CHAT, f"content-length: {len(body)}", *headers))
            refused(connection.read_response(), status, code)
            connection.send(body[:10]).send(body[10:] + hot(body, KEY))
            assert connection.read_response().status == 200
            connection.send(hot(body, *headers) + head("GET", "/v1/models", KEY) + hot(body, KEY))
            refused(connection.read_response(), status, code)
            assert [connection.read_response().status for _ in range(2)] == [200, 200]


def test_a_client_that_sends_all_the_same_gets_its_refusal(locked: RawFleet) -> None:
    for framing, piece in (
        (f"content-length: {MAX_BODY}", b" " * 2**20),
        ("transfer-encoding: chunked", stream_chunk(b" " * 2**20)),
    ):
        with locked.connect() as connection:
            connection.send(head("POST", CHAT, framing))
            for _ in range(4):
                connection.send(piece)
            refused_for_good(connection, 401, "invalid_api_key")


def test_a_refused_body_is_no_request(locked: RawFleet) -> None:
    """What is inside of a body that nobody reads must not be taken for the next request."""
    smuggled = head("GET", "/v1/models", KEY, "x-request-id: smuggled")
    with locked.connect() as connection:
        connection.send(head("POST", CHAT, f"content-length: {len(smuggled)}") + smuggled)
        refused(connection.read_response(), 401, "invalid_api_key")
        connection.send(head("GET", "/health", "x-request-id: next"))
        assert connection.read_response().headers["x-request-id"] == "next"
    with locked.connect() as connection:
        connection.send(head("POST", CHAT, f"content-length: {MAX_BODY}") + smuggled)
        refused_for_good(connection, 401, "invalid_api_key")
    with locked.connect() as connection:
        connection.send(head("POST", CHAT, "content-length: 9", "expect: 100-continue") + smuggled)
        refused_for_good(connection, 401, "invalid_api_key")


def test_a_request_has_the_key_that_it_came_with_whatever_came_before(locked: RawFleet) -> None:
    bad, good = hot(ask()), hot(ask(), KEY)
    for again, other, status in ((bad, good, 401), (good, bad, 200)):
        for pieces in ([other[:30], other[30:]], [head("GET", "/health") + other]):
            with locked.connect() as connection:
                assert connection.send(again).read_response().status == status
                for piece in pieces:
                    connection.send(piece)
                    time.sleep(0.01)
                if len(pieces) == 1:
                    assert connection.read_response().status == 200
                assert connection.read_response().status == (200 if other is good else 401)
                assert connection.send(again).read_response().status == status
