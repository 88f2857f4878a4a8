"""Workers that do not speak HTTP as they should, break off, or answer early; and reused connections to them."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from support.fake_openai import stream_chunk, stream_head
from support.http_shapes import CHUNKS, LENGTHS
from support.raw_upstream import Call, RawFleet, ask, event, event_stream, hot, whole
from support.wire import PATIENCE_S, RawConnection, RawResponse, error_object, events

JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
LARGE_HEAD = 2**16 + 2**15


def worker_failed(response: RawResponse, status: int = 502, code: str = "worker_failed") -> None:
    assert response.status == status, response
    assert response.headers["content-type"] == "application/json" and response.headers["x-request-id"]
    error = error_object(response.body)
    assert (error["type"], error["code"]) == ("server_error", code)


def worker_crashed(response: RawResponse) -> None:
    """It may have died of the request, which the client is told not to send again."""
    worker_failed(response, 500, "worker_crashed")
    assert response.headers["x-should-retry"] == "false"


def assert_serves(connection: RawConnection, fleet: RawFleet) -> None:
    """The client's connection and the gateway are as good as before, and no answer goes to another request."""
    fleet.upstream.script = Call.serve
    for stream in (False, True):
        response = connection.send(hot(ask(stream), "x-request-id: after")).read_response()
        assert response.status == 200
        last = events(response.body)[2] if stream else response.body
        assert json.loads(last) == {"id": "after"}


# --- before the head of the answer has gone out ---

FRAMINGS = {name: JSON_HEAD + lines + b"\r\n\r\n{}\r\n0\r\n\r\n" for name, lines in LENGTHS.items()}
HEADS = {
    "garbage": b"\x00\x01garbage\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a status of letters": b"HTTP/1.1 2x0 OK\r\ncontent-length: 2\r\n\r\n{}",
    "a status of two digits": b"HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\n{}",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\n{}",
    "NUL in a header": JSON_HEAD + b"x: \x00\r\ncontent-length: 2\r\n\r\n{}",
    "a space in a name": JSON_HEAD + b"x y: 1\r\ncontent-length: 2\r\n\r\n{}",
    "a line without a colon": JSON_HEAD + b"xy\r\ncontent-length: 2\r\n\r\n{}",
    "a change of protocols": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "a large header": JSON_HEAD + b"x: " + b"x" * LARGE_HEAD + b"\r\ncontent-length: 2\r\n\r\n{}",
    "a large reason": b"HTTP/1.1 200 " + b"x" * LARGE_HEAD + b"\r\ncontent-length: 2\r\n\r\n{}",
    "many headers": JSON_HEAD + b"x: y\r\n" * (LARGE_HEAD // 6) + b"content-length: 2\r\n\r\n{}",
    "a head without end": JSON_HEAD + b"x: " + b"x" * LARGE_HEAD,
    "a compressed answer": JSON_HEAD + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
    "a compressed stream": STREAM_HEAD + b"content-encoding: br\r\ncontent-length: 2\r\n\r\n{}",
}
BODIES = {name: JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n" + body for name, body in CHUNKS.items()}


@pytest.mark.parametrize("case", [*FRAMINGS, *HEADS])
def test_a_head_that_is_none_is_a_502_at_once(fleet: RawFleet, case: str) -> None:
    """The worker leaves its connection open: it is not the end of it that tells."""
    answer = {**FRAMINGS, **HEADS}[case]
    fleet.upstream.script = lambda call: (call.body, call.send(answer))
    with fleet.connect() as connection:
        for stream in (False, True):
            worker_failed(connection.send(hot(ask(stream))).read_response())
        assert_serves(connection, fleet)


@pytest.mark.parametrize("case", BODIES)
def test_a_whole_answer_that_is_not_chunked_as_it_says_is_a_502(fleet: RawFleet, case: str) -> None:
    fleet.upstream.script = lambda call: (call.body, call.send(BODIES[case]))
    with fleet.connect() as connection:
        worker_failed(connection.send(hot(ask())).read_response())
        assert_serves(connection, fleet)


CUT = {
    "nothing": b"",
    "half a head": JSON_HEAD,
    "half a length": JSON_HEAD + b"content-length: 200\r\n\r\n{}",
    "a length without a body": JSON_HEAD + b"content-length: 2\r\n\r\n",
    "half a chunk": JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
    "no last chunk": JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "half a last chunk": JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
    "only an interim head": b"HTTP/1.1 103 Early Hints\r\n\r\n",
}


@pytest.mark.parametrize("end", [Call.close, Call.reset])
@pytest.mark.parametrize("case", CUT)
def test_a_whole_answer_that_breaks_off_is_a_500(fleet: RawFleet, case: str, end: Callable[[Call], None]) -> None:
    fleet.upstream.script = lambda call: (call.body, call.send(CUT[case]), end(call))
    with fleet.connect() as connection:
        worker_crashed(connection.send(hot(ask())).read_response())
        assert_serves(connection, fleet)
    assert len(fleet.upstream.calls) == 3, "on a fresh connection the request is not sent again"


# --- inside a stream ---

BROKEN = {
    "no chunk size": b"zz\r\ndata: 2\n\n\r\n",
    "a chunk longer than its size": b"2\r\ndata: 2\n\n\r\n",
    "a chunk size past 64 bits": b"10000000000000009\r\ndata: 2\n\n\r\n",
    "garbage": b"\x00\xff" * 100,
    "an event without end": b"b00000\r\ndata: " + b"x" * 9 * 2**20,
}


def ends_with_an_error_event(fleet: RawFleet, rest: Callable[[Call], object], head: bytes) -> None:
    """The first event is at the client when the rest comes."""
    arrived = threading.Event()
    fleet.upstream.script = lambda call: (call.body, call.send(head), arrived.wait(PATIENCE_S), rest(call))
    with fleet.connect() as connection:
        connection.send(hot(ask(stream=True)))
        assert connection.read_head()[0] == 200
        chunks = connection.read_chunks()
        assert next(chunks) == event("1")
        arrived.set()
        *complete, last = events(b"".join(chunks))
        assert complete in ([], ["2"])
        error = error_object(last)
        assert (error["type"], error["code"]) == ("server_error", "worker_failed")
        assert_serves(connection, fleet)


@pytest.mark.parametrize("case", BROKEN)
def test_a_stream_that_is_no_http_any_more_ends_with_an_error_event(fleet: RawFleet, case: str) -> None:
    def rest(call: Call) -> None:
        with suppress(OSError):
            call.send(BROKEN[case])
        call.until_left()

    ends_with_an_error_event(fleet, rest, stream_head() + stream_chunk(event("1")))


@pytest.mark.parametrize("end", [Call.close, Call.reset])
@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (stream_head() + stream_chunk(event("1")), b""),
        (stream_head() + stream_chunk(event("1")), b"5\r\nda"),
        (stream_head() + stream_chunk(event("1")), stream_chunk(b"data: 2\n\ndata: {")),
        (stream_head() + stream_chunk(event("1")), stream_chunk(b"data: {") + stream_chunk(b"")),
        (STREAM_HEAD + b"content-length: 1000\r\n\r\n" + event("1"), b"data: {"),
        (STREAM_HEAD + b"\r\n" + event("1"), b"data: {"),
        (STREAM_HEAD + b"\r\n" + event("1"), b""),
    ],
)
def test_a_stream_that_breaks_off_ends_with_an_error_event(
    fleet: RawFleet, head: bytes, rest: bytes, end: Callable[[Call], None]
) -> None:
    ends_with_an_error_event(fleet, lambda call: (call.send(rest), end(call)), head)


# --- what is allowed ---


@pytest.mark.parametrize("stream", [False, True])
def test_interim_heads_are_passed_over(fleet: RawFleet, stream: bool) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nx: y\r\n\r\n"
    interim += b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    fleet.upstream.script = lambda call: (
        call.body,
        call.send(interim),
        time.sleep(0.05),
        call.send(interim),
        call.serve(),
    )
    with fleet.connect() as connection:
        for number in range(2):
            response = connection.send(hot(ask(stream), f"x-request-id: {number}")).read_response()
            assert response.status == 200 and f'{{"id": "{number}"}}'.encode() in response.body
    assert fleet.upstream.calls[-1].position == 2, "the worker's connection is kept"


def test_answers_may_be_framed_in_any_right_way(fleet: RawFleet) -> None:
    body = b'{"a": [1, 2]}'
    answers = (
        JSON_HEAD + b"content-length: %d\r\n\r\n" % len(body) + body,
        JSON_HEAD
        + b"Transfer-Encoding: Chunked\r\n\r\n5;a=b\r\n%b\r\n8\r\n%b\r\n0\r\nx: y\r\n\r\n" % (body[:5], body[5:]),
        JSON_HEAD + b"connection: close\r\n\r\n" + body,
        JSON_HEAD.replace(b"1.1", b"1.0") + b"\r\n" + body,
        JSON_HEAD.replace(b" OK", b"") + b"content-length: %d\r\n\r\n" % len(body) + body,
        JSON_HEAD.replace(b" OK", b" \xe4\xf6") + b"x:\r\ncontent-length:%d\r\n\r\n" % len(body) + body,
    )
    with fleet.connect() as connection:
        for answer in answers:
            for size in (1, 1000):

                def reply(call: Call, answer: bytes = answer, size: int = size) -> None:
                    assert call.body
                    for start in range(0, len(answer), size):
                        call.send(answer[start : start + size])
                    call.close()

                fleet.upstream.script = reply
                response = connection.send(hot(ask())).read_response()
                assert (response.status, response.body) == (200, body), answer


def test_a_head_that_comes_again_says_nothing_of_how_its_body_comes(fleet: RawFleet) -> None:
    again = whole(b'{"a": 1}')
    ways: list[list[bytes]] = [
        [again],
        [again],
        [again[:-3], again[-3:]],
        [again[:-8], again[-8:]],
        [again[start : start + 1] for start in range(len(again))],
        [again],
        [b"HTTP/1.1 103 Early Hints\r\n\r\n" + again],
        [again],
        [again + again],
        [again],
    ]

    def reply(call: Call) -> None:
        assert call.body
        for piece in ways[len(fleet.upstream.calls) - 1]:
            call.send(piece)
            time.sleep(0.002)

    fleet.upstream.script = reply
    with fleet.connect() as connection:
        for number in range(len(ways)):
            response = connection.send(hot(ask())).read_response()
            assert (response.status, response.body) == (200, b'{"a": 1}'), number
        ways.append([again])
        assert connection.send(hot(ask())).read_response().status == 200
        fleet.upstream.script = lambda call: (call.body, call.send(again[:-1]), call.close())
        worker_crashed(connection.send(hot(ask())).read_response())
        assert_serves(connection, fleet)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_stream_may_be_cut_anywhere(fleet: RawFleet, size: int) -> None:
    answer = event_stream("1", json.dumps({"text": "é"}, ensure_ascii=False), "x" * 100)

    def reply(call: Call) -> None:
        assert call.body
        for start in range(0, len(answer), size):
            call.send(answer[start : start + size])

    fleet.upstream.script = reply
    with fleet.connect() as connection:
        response = connection.send(hot(ask(stream=True))).read_response()
    assert events(response.body) == ["1", '{"text": "é"}', "x" * 100, "[DONE]"]


# --- a worker that answers before the body is sent ---


def read_nothing(call: Call) -> None:
    """Leave the body where it is, and give up in the end."""
    time.sleep(0.5)
    call.reset()


@pytest.mark.parametrize("end", [Call.close, lambda call: call.body, read_nothing])
@pytest.mark.parametrize(("status", "message"), [(413, "too large"), (429, "too many"), (400, "no")])
def test_an_answer_that_comes_before_the_body_is_sent_arrives(
    fleet: RawFleet, status: int, message: str, end: Callable[[Call], object]
) -> None:
    error = json.dumps({"error": {"message": message, "type": "t", "param": None, "code": "c"}}).encode()
    large = hot(ask(user="x" * 20_000_000))
    fleet.upstream.script = lambda call: (call.send(whole(error, status=status)), end(call))
    with fleet.connect() as connection:
        for _ in range(2):
            response = connection.send(large).read_response()
            assert response.status == status and error_object(response.body)["message"] == message
        assert_serves(connection, fleet)


def test_a_worker_that_answers_early_and_resets_harms_nobody(fleet: RawFleet) -> None:
    fleet.upstream.script = lambda call: (call.send(whole(b'{"error": "no"}', status=413)), call.reset())
    with fleet.connect() as connection:
        assert connection.send(hot(ask(user="x" * 20_000_000))).read_response().status in (413, 502)
        assert_serves(connection, fleet)


# --- connections that are used again ---


def test_a_connection_is_used_again(fleet: RawFleet) -> None:
    with fleet.connect() as connection:
        for number in range(10):
            assert connection.send(hot(ask(stream=number % 2 == 1))).read_response().status == 200
    assert [call.position for call in fleet.upstream.calls] == list(range(1, 11))


NOT_REUSABLE = {
    "it said close": whole(b"{}").replace(b"keep-alive", b"close"),
    "it said Close among others": whole(b"{}").replace(b"keep-alive", b"keep-alive, Close"),
    "HTTP/1.0": whole(b"{}").replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"connection: keep-alive\r\n", b""),
    "bytes behind a length": whole(b"{}") + whole(b'{"id": "smuggled"}'),
    "bytes behind a last chunk": JSON_HEAD
    + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    + whole(b'{"id": "smuggled"}'),
}


@pytest.mark.parametrize("case", NOT_REUSABLE)
def test_a_connection_that_cannot_be_trusted_is_not_used_again(fleet: RawFleet, case: str) -> None:
    """The worker would take more requests on it."""
    fleet.upstream.script = lambda call: (call.body, call.send(NOT_REUSABLE[case]))
    with fleet.connect() as connection:
        response = connection.send(hot(ask())).read_response()
        assert (response.status, response.body) == (200, b"{}")
        assert_serves(connection, fleet)
    assert fleet.upstream.calls[1].connection != fleet.upstream.calls[0].connection


def test_bytes_that_come_between_two_requests_answer_none(fleet: RawFleet) -> None:
    def then_more(call: Call) -> None:
        call.serve()
        time.sleep(0.1)
        call.send(whole(b'{"id": "smuggled"}'))

    fleet.upstream.script = then_more
    with fleet.connect() as connection:
        assert connection.send(hot(ask())).read_response().status == 200
        time.sleep(0.3)
        assert_serves(connection, fleet)
    assert fleet.upstream.calls[1].connection != fleet.upstream.calls[0].connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("end", [Call.close, Call.reset])
def test_a_pooled_connection_that_the_worker_closed_is_no_failure(
    fleet: RawFleet, end: Callable[[Call], None], stream: bool
) -> None:
    """However the worker's close and the next request cross: sometimes the gateway knows of it, sometimes not yet."""
    with fleet.connect() as connection:
        for pause in (0.0, 0.0, 0.0, 0.1):
            fleet.upstream.script = lambda call: (call.serve(), call.end_sending() if end is Call.close else end(call))
            assert connection.send(hot(ask(stream))).read_response().status == 200
            time.sleep(pause)
        assert_serves(connection, fleet)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("read_first", [False, True])
@pytest.mark.parametrize("end", [Call.close, Call.reset])
def test_a_request_that_meets_the_workers_close_is_sent_again(
    fleet: RawFleet, end: Callable[[Call], None], read_first: bool, stream: bool
) -> None:
    fleet.upstream.script = lambda call: call.serve() if call.position == 1 else (read_first and call.body, end(call))
    with fleet.connect() as connection:
        for number in range(3):
            response = connection.send(hot(ask(stream), f"x-request-id: {number}")).read_response()
            assert response.status == 200 and f'{{"id": "{number}"}}'.encode() in response.body
    ids = [(call.headers["x-request-id"], call.position) for call in fleet.upstream.calls]
    assert ids == [("0", 1), ("1", 2), ("1", 1), ("2", 2), ("2", 1)]


def test_many_pooled_connections_that_died_together_are_no_failure(fleet: RawFleet) -> None:
    gate = threading.Barrier(10)
    fleet.upstream.script = lambda call: (
        (call.body, gate.wait(PATIENCE_S), call.serve()) if call.position == 1 else call.reset()
    )
    connections = [fleet.connect() for _ in range(10)]
    try:
        for connection in connections:
            connection.send(hot(ask()))
        assert [connection.read_response().status for connection in connections] == [200] * 10
        for connection in connections:
            connection.send(hot(ask()))
        assert [connection.read_response().status for connection in connections] == [200] * 10
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("end", [Call.close, Call.reset])
def test_a_reused_connection_that_dies_inside_an_answer_is_a_500(fleet: RawFleet, end: Callable[[Call], None]) -> None:
    fleet.upstream.script = lambda call: (
        call.serve() if call.position == 1 else (call.body, call.send(b"HTTP/1.1 2"), time.sleep(0.1), end(call))
    )
    with fleet.connect() as connection:
        assert connection.send(hot(ask())).read_response().status == 200
        worker_crashed(connection.send(hot(ask())).read_response())
        assert len(fleet.upstream.calls) == 2, "it was not sent again"
        assert_serves(connection, fleet)
