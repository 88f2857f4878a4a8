"""Clients that stop reading: they cost bounded memory, hold nobody else up, and miss nothing when they read on."""

import hashlib
import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from support.fake_openai import stream_chunk, stream_head
from support.fleet import until
from support.raw_upstream import Call, RawFleet, ask, hot, raw_fleet, whole
from support.wire import head

MB = 2**20
PIECE = stream_chunk(b"data: " + b"x" * 16_376 + b"\n\n")
PIECES = 200 * MB // len(PIECE)
DONE = stream_chunk(b"data: [DONE]\n\n") + stream_chunk(b"")


@pytest.fixture(scope="module")
def fresh_fleet() -> Iterator[RawFleet]:
    """A gateway whose memory no other test has grown, having served a little."""
    with raw_fleet() as fleet:
        for _ in range(20):
            with fleet.connect() as connection:
                assert connection.send(hot(ask(stream=True))).read_response().status == 200
                assert connection.send(head("GET", "/health")).read_response().status == 200
        yield fleet
        fleet.assert_well()


def memory(fleet: RawFleet) -> int:
    return int(psutil.Process(fleet.gateway.pid).memory_info().rss)


def until_stalled(*calls: Call) -> None:
    """Wait until all have sent something, and nothing more can be sent for a while."""
    seen = [0]
    while seen != (seen := [call.sent for call in calls]) or 0 in seen:
        time.sleep(0.5)


def flood(call: Call) -> None:
    """200 MB as fast as they go."""
    assert call.body
    call.send(stream_head(connection="keep-alive"))
    for _ in range(PIECES // 16):
        call.send(PIECE * 16)
    call.send(DONE)


def test_a_client_that_stops_reading_stops_its_worker_and_misses_nothing(fresh_fleet: RawFleet) -> None:
    fleet = fresh_fleet
    fleet.upstream.forget()
    fleet.upstream.script = flood
    before = memory(fleet)
    with fleet.connect() as connection:
        connection.send(hot(ask(stream=True)))
        call = fleet.upstream.until_called()
        until_stalled(call)
        assert call.sent < 50 * MB, "most of the answer has not left the worker"
        assert memory(fleet) - before < 20 * MB

        fleet.upstream.script = Call.serve
        with fleet.connect() as other:
            assert other.send(hot(ask())).read_response().status == 200
            assert other.send(head("GET", "/v1/models")).read_response().status == 200

        got, expected = hashlib.sha256(), hashlib.sha256()
        connection.read_head()
        for chunk in connection.read_chunks():
            got.update(chunk)
        for _ in range(PIECES // 16 * 16):
            expected.update(PIECE[6:-2])
        expected.update(b"data: [DONE]\n\n")
        assert got.digest() == expected.digest()
        assert memory(fleet) - before < 20 * MB
        assert connection.send(head("GET", "/health")).read_response().status == 200


def test_twenty_clients_that_do_not_read_cost_bounded_memory_and_free_their_workers(fresh_fleet: RawFleet) -> None:
    fleet = fresh_fleet
    fleet.upstream.forget()
    fleet.upstream.script = flood_until_left
    before = memory(fleet)
    connections = [fleet.connect() for _ in range(20)]
    for connection in connections:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.send(hot(ask(stream=True)))
    fleet.upstream.until_called(20)
    until_stalled(*fleet.upstream.calls)
    assert memory(fleet) - before < 40 * MB
    for number, connection in enumerate(connections):
        connection.reset() if number % 2 else connection.close()
    for call in fleet.upstream.calls:
        until(lambda call=call: call.is_closed, "the worker is left")


def flood_until_left(call: Call) -> None:
    try:
        flood(call)
    except OSError:
        call.is_closed = True
        raise


def test_requests_without_end_whose_answers_nobody_reads_stop_being_read(fresh_fleet: RawFleet) -> None:
    fleet = fresh_fleet
    fleet.upstream.forget()
    request = head("GET", "/v1/models", "x-padding: " + "x" * 32_000) + hot(ask(user="x" * 32_000))
    before = memory(fleet)
    with fleet.connect() as connection:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sock.settimeout(1)
        sent = 0
        try:
            while sent < 200 * MB:
                sent += connection.sock.send(request[sent % len(request) :])
        except TimeoutError:
            pass
        assert sent < 100 * MB
        assert memory(fleet) - before < 20 * MB
        connection.sock.settimeout(60)
        for number in range(sent // len(request) * 2):
            assert connection.read_response().status == 200, number


@pytest.mark.long
def test_tiny_requests_without_end_whose_answers_nobody_reads_stop_being_read(fresh_fleet: RawFleet) -> None:
    """Their answers are larger than they, and wait for nothing."""
    request = hot(b"{") * 1000
    before = memory(fresh_fleet)
    with fresh_fleet.connect() as connection:
        connection.sock.settimeout(1)
        sent = 0
        try:
            while sent < 50 * MB:
                sent += connection.sock.send(request[sent % len(request) :])
        except TimeoutError:
            pass
        assert sent < 50 * MB
        assert memory(fresh_fleet) - before < 20 * MB
        connection.sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MB
        )  # else TCP trickles: it is no full segment
        connection.sock.settimeout(60)
        for number in range(sent // len(hot(b"{"))):
            assert connection.read_response().status == 400, number


def test_a_client_that_reads_slowly_does_not_stop_the_workers_connection(fresh_fleet: RawFleet) -> None:
    """It goes to the next request while the answer of the last is still on its way to the client."""
    fleet = fresh_fleet
    fleet.upstream.forget()
    large = whole(b'{"data": "' + b"x" * 10 * MB + b'"}')
    with fleet.connect() as slow, fleet.connect() as other:
        assert other.send(hot(ask())).read_response().status == 200
        fleet.upstream.script = lambda call: (call.body, call.send(large))
        slow.send(hot(ask()))
        fleet.upstream.until_called(2)
        until_stalled(fleet.upstream.calls[1])
        fleet.upstream.script = Call.serve
        assert other.send(hot(ask())).read_response().status == 200
        assert {call.connection for call in fleet.upstream.calls} == {fleet.upstream.calls[0].connection}
        assert len(slow.read_response().body) == 10 * MB + 12


def test_an_answer_in_one_piece_is_read_slowly_and_whole(fresh_fleet: RawFleet) -> None:
    fleet = fresh_fleet
    fleet.upstream.forget()
    body = b'{"data": "' + b"x" * 30 * MB + b'"}'
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    fleet.upstream.script = lambda call: (call.body, call.send(answer + body))
    with fleet.connect() as connection, fleet.connect() as other:
        connection.send(hot(ask()))
        time.sleep(0.5)
        fleet.upstream.until_called()
        assert other.send(head("GET", "/health")).read_response().status == 200
        response = connection.read_response()
    assert response.status == 200 and response.body == body
