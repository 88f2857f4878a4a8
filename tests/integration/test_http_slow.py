"""Clients that send slowly: a head and a body must come within their time, and whoever waits for an answer has all."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from support.raw_upstream import CHAT, EMBEDDINGS, RawFleet, ask, hot, raw_fleet
from support.wire import RawConnection, RawResponse, error_object, head

LIMIT_S = 1.5
BODY = json.dumps(ask()).encode()
HALF_HEADS = [b"P", b"GET /health HTTP/1.1", b"GET /health HTTP/1.1\r\n", head("GET", "/health")[:-2], hot(b"{}")[:-4]]
HALF_BODIES = [
    head("POST", CHAT, f"content-length: {len(BODY)}"),
    hot(BODY)[:-1],
    hot(BODY, path=EMBEDDINGS)[:-1],
    head("POST", CHAT, "transfer-encoding: chunked"),
    head("POST", CHAT, "transfer-encoding: chunked") + b"ff\r\n{",
    head("POST", CHAT, "transfer-encoding: chunked") + b"2\r\n{}\r\n0\r\n",
]


@pytest.fixture(scope="module")
def fleet_for_module() -> Iterator[RawFleet]:
    with raw_fleet(env={"CHATFLEET_HEAD_TIMEOUT": f"{LIMIT_S}", "CHATFLEET_BODY_TIMEOUT": f"{LIMIT_S}"}) as fleet:
        yield fleet


@pytest.fixture
def impatient(fleet_for_module: RawFleet) -> Iterator[RawFleet]:
    """A gateway that waits a moment for heads and bodies."""
    fleet_for_module.upstream.forget()
    yield fleet_for_module
    fleet_for_module.assert_well()


def refused(response: RawResponse) -> None:
    assert response.status == 408, response
    assert response.headers["content-type"] == "application/json" and response.headers["x-request-id"]
    assert response.headers["connection"] == "close"
    error = error_object(response.body)
    assert (error["type"], error["code"]) == ("invalid_request_error", "request_timeout")


def test_half_a_request_is_a_408_in_time(impatient: RawFleet) -> None:
    with ExitStack() as stack:
        begun = time.monotonic()
        connections = [stack.enter_context(impatient.connect()).send(half) for half in HALF_HEADS + HALF_BODIES]
        for connection in connections:
            refused(connection.read_response())
            assert time.monotonic() - begun > LIMIT_S * 0.9
        for connection in connections:
            assert connection.rest() == b""
    assert not impatient.upstream.calls


def test_a_byte_now_and_then_does_not_help(impatient: RawFleet) -> None:
    long_head = b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 1000
    long_body = head("POST", CHAT, "content-length: 100000") + b" " * 1000
    with impatient.connect() as slow_head, impatient.connect() as slow_body:
        begun = time.monotonic()
        slow_head.send(long_head[:24])
        slow_body.send(long_body[:-900])
        sent = 0
        while time.monotonic() - begun < LIMIT_S * 1.4:  # what comes behind the refusal is let go
            slow_head.send(long_head[24 + sent : 25 + sent])
            slow_body.send(b" ")
            sent += 1
            time.sleep(LIMIT_S / 10)
        for connection in (slow_head, slow_body):
            refused(connection.read_response())
            assert connection.rest() == b""


def test_each_request_of_a_connection_has_its_time(impatient: RawFleet) -> None:
    with impatient.connect() as by_head, impatient.connect() as by_body:
        for connection in (by_head, by_body):
            connection.send(hot(BODY) + head("GET", "/health"))
            assert [connection.read_response().status for _ in range(2)] == [200, 200]
        by_head.send(HALF_HEADS[-1])
        by_body.send(HALF_BODIES[1])
        refused(by_head.read_response())
        refused(by_body.read_response())


@pytest.mark.long
def test_half_a_request_behind_a_slow_answer_does_not_cut_it(impatient: RawFleet) -> None:
    impatient.upstream.script = lambda call: (time.sleep(LIMIT_S * 1.5), call.serve())
    with ExitStack() as stack:
        halves = HALF_HEADS[-1:] + HALF_BODIES[1:2]
        requests = [hot(ask(stream)) + half for stream in (False, True) for half in halves]
        for connection in [stack.enter_context(impatient.connect()).send(request) for request in requests]:
            assert connection.read_response().status == 200
            refused(connection.read_response())
            assert connection.rest() == b""


def test_who_waits_has_all_the_time(impatient: RawFleet) -> None:
    """For an answer, and between two requests."""
    impatient.upstream.script = lambda call: (time.sleep(LIMIT_S * 1.5), call.serve())
    with impatient.connect() as waiting, impatient.connect() as idle:
        idle.send(head("GET", "/health"))
        assert idle.read_response().status == 200
        assert waiting.send(hot(ask())).read_response().status == 200
        assert idle.send(head("GET", "/health")).read_response().status == 200
        assert waiting.send(head("GET", "/health")).read_response().status == 200


def test_the_body_of_a_request_that_is_answered_must_come_too(impatient: RawFleet) -> None:
    with impatient.connect() as connection:
        connection.send(head("POST", "/nothing", "content-length: 5") + b"{")
        assert connection.read_response().status == 404
        connection.rest()


@pytest.mark.long
def test_a_thousand_slow_clients_harm_nobody(impatient: RawFleet) -> None:
    with ExitStack() as stack:
        slow = []
        for number in range(1000):
            connection = stack.enter_context(RawConnection(impatient.gateway.url))
            slow.append(connection.send((HALF_HEADS + HALF_BODIES)[number % 11]))
        longest = 0.0
        with impatient.connect() as good:
            for number in range(50):
                begun = time.monotonic()
                good.send(hot(ask(stream=number % 2 == 1)) if number % 3 else head("GET", "/v1/models"))
                assert good.read_response().status == 200
                longest = max(longest, time.monotonic() - begun)
        assert longest < 3, "good requests wait for slow ones"
        for connection in slow:
            refused(connection.read_response())
            assert connection.rest() == b""
