"""One request at one worker: its slot is given back, and the asker told one outcome."""

import asyncio
import json
import ssl
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfleet.core.errors import ServingError, WorkerBrokeOff, WorkerFailed, WorkerUnreachable
from chatfleet.core.fleet import ModelInfo, WorkerInfo
from chatfleet.dispatch import exchange as exchange_module
from chatfleet.dispatch.exchange import Exchange
from chatfleet.dispatch.upstream import Upstream
from chatfleet.dispatch.view import Worker
from support.data_plane import WORKER_URL, FakeWorker
from support.fake_openai import http_answer, stream_chunk, stream_head
from support.raw_upstream import event, event_stream, whole

JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
REQUEST = (b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n", b"{}")


class Asker:
    """What was told. `outcomes` are the last words, of which there is one."""

    def __init__(self, on_call: Callable[[str], None] = lambda name: None) -> None:
        self.text = b""
        self.outcomes: list[str] = []
        self.error: ServingError | None = None
        self._on_call = on_call

    def events(self, data: bytes) -> None:
        assert data.endswith(b"\n\n") and not self.outcomes
        self.text += data
        self._on_call("events")

    def ended(self) -> None:
        self.outcomes.append("ended")
        self._on_call("ended")

    def whole(self, body: bytes) -> None:
        assert not self.text
        self.text = body
        self.outcomes.append("whole")
        self._on_call("whole")

    def failed(self, error: ServingError) -> None:
        self.error = error
        self.outcomes.append("failed")
        self._on_call("failed")


class Fleet:
    """A worker with that many connections made."""

    def __init__(self, connections: int = 1) -> None:
        self.upstream = Upstream(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        self.fake = FakeWorker(self.upstream, connections)
        self.worker = Worker(WorkerInfo(worker_id="one", url=WORKER_URL, models=(ModelInfo(id="one"),)))

    def ask(self, asker: Asker) -> Exchange:
        exchange = Exchange(self.upstream, self.worker, asker)
        exchange.send(REQUEST)
        assert self.worker.in_flight == 1 and not asker.outcomes
        return exchange

    def give(self, *pieces: bytes) -> None:
        """To the first connection, until it is cut."""
        connection, transport = self.fake.connections[0]
        for piece in pieces:
            if not transport.is_closing():
                connection.data_received(piece)

    def lose(self, exc: Exception | None = None) -> None:
        connection, transport = self.fake.connections[0]
        transport.close()
        connection.connection_lost(exc)


def answered(*pieces: bytes, lose: bool = False) -> Asker:
    fleet, asker = Fleet(), Asker()
    fleet.ask(asker)
    fleet.give(*pieces)
    if lose and not asker.outcomes:
        fleet.lose()
    assert fleet.worker.in_flight == 0 and len(asker.outcomes) == 1
    return asker


def test_answers_are_told_as_what_they_are() -> None:
    good = answered(whole(b'{"a": 1}'))
    assert (good.outcomes, good.text) == (["whole"], b'{"a": 1}')
    streamed = answered(event_stream("1", "2"))
    assert streamed.outcomes == ["ended"] and streamed.text == event("1") + event("2") + event("[DONE]")
    error = {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}
    refused = answered(whole(json.dumps(error).encode(), status=400))
    assert refused.outcomes == ["failed"] and refused.error is not None
    assert (refused.error.status, refused.error.message) == (400, "m")


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (JSON_HEAD + b"\r\n{}", "whole"),
        (JSON_HEAD + b"\r\n{", "failed"),
        (JSON_HEAD + b"\r\n", "failed"),
        (JSON_HEAD + b"\r\n\xff", "failed"),
        (STREAM_HEAD + b"\r\n" + event("1") + event("[DONE]"), "ended"),
        (STREAM_HEAD + b"\r\n" + event("1") + b"data: [DONE]", "ended"),
        (STREAM_HEAD + b"\r\n" + event("1"), "failed"),
        (STREAM_HEAD + b"\r\n" + event("[DONE]") + b"data: 1", "failed"),
        (STREAM_HEAD + b"\r\n", "failed"),
        (b"HTTP/1.1 503 No\r\n\r\nno", "failed"),
    ],
)
def test_an_answer_without_framing_must_say_itself_that_it_is_whole(data: bytes, outcome: str) -> None:
    assert answered(data, lose=True).outcomes == [outcome]
    assert answered(*(data[start : start + 1] for start in range(len(data))), lose=True).outcomes == [outcome]


@pytest.mark.parametrize(
    "data",
    [
        http_answer(b"<html>", content_type="text/html"),
        http_answer(b"{}", content_type=""),
        whole(b"{}", "content-encoding: gzip"),
        event_stream("1").replace(b"connection:", b"content-encoding: br\r\nconnection:", 1),
        stream_head() + stream_chunk(event("1") + b"data: {") + stream_chunk(b""),
        stream_head() + stream_chunk(event("1")) + b"zz",
    ],
)
def test_what_is_no_answer_of_that_api_fails(data: bytes) -> None:
    asker = answered(data, lose=True)
    assert asker.outcomes == ["failed"]
    assert isinstance(asker.error, WorkerFailed) and not isinstance(asker.error, WorkerUnreachable)


def test_an_answer_that_is_too_large_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "MAX_ANSWER_BYTES", 100)
    fleet, asker = Fleet(), Asker()
    fleet.ask(asker)
    fleet.give(JSON_HEAD + b"content-length: 1000\r\n\r\n" + b"x" * 60)
    assert not asker.outcomes
    fleet.give(b"x" * 60)
    assert asker.outcomes == ["failed"] and fleet.worker.in_flight == 0
    assert fleet.fake.connections[0][1].was_aborted


@pytest.mark.parametrize("size", [1, 100, 10_000])
@pytest.mark.parametrize("data", [whole(b"{}"), event_stream("1", "2"), whole(b"no", status=500), b"\0"])
@pytest.mark.parametrize("at", ["events", "ended", "whole", "failed"])
def test_who_abandons_it_in_the_middle_is_told_nothing_more(at: str, data: bytes, size: int) -> None:
    called: list[str] = []
    fleet = Fleet()

    def on_call(name: str) -> None:
        called.append(name)
        if name == at:
            exchange.abandon()
            exchange.abandon()

    exchange = fleet.ask(Asker(on_call))
    fleet.give(*(data[start : start + size] for start in range(0, len(data), size)))
    assert called and at not in called[:-1]
    assert fleet.worker.in_flight == 0
    if called[-1] == at == "events" and size < len(data):
        assert fleet.fake.connections[0][1].was_aborted


def test_a_lost_worker_is_told_once() -> None:
    fleet, asker = Fleet(), Asker()
    fleet.ask(asker)
    fleet.worker.lose()
    assert asker.outcomes == ["failed"] and fleet.worker.in_flight == 0
    assert fleet.fake.connections[0][1].was_aborted
    fleet.lose()
    fleet.worker.lose()
    assert asker.outcomes == ["failed"]


def test_a_connection_is_paused_only_while_it_is_this_requests() -> None:
    fleet, asker = Fleet(), Asker()
    transport = fleet.fake.connections[0][1]
    exchange = fleet.ask(asker)
    exchange.pause()
    assert transport.is_reading_paused
    exchange.resume()
    assert not transport.is_reading_paused

    paused = Fleet()
    transport = paused.fake.connections[0][1]
    exchange = paused.ask(Asker(lambda name: exchange.pause()))
    paused.give(whole(b"{}"))
    assert not transport.is_reading_paused, "it is idle, and the next request's"
    following = Asker()
    paused.ask(following)
    exchange.pause()
    exchange.abandon()
    assert not transport.is_reading_paused and not transport.is_closing()
    paused.give(whole(b"{}"))
    assert following.outcomes == ["whole"]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


async def test_a_worker_that_is_not_there_behind_a_stale_connection_may_have_died_of_the_request() -> None:
    """Nothing listens where the second connection would go."""
    told = asyncio.Event()
    fleet, asker = Fleet(), Asker(lambda name: told.set())
    fleet.ask(Asker())
    fleet.give(whole(b"{}"))
    fleet.ask(asker)
    fleet.lose()
    assert not asker.outcomes and fleet.worker.in_flight == 1
    await told.wait()
    assert isinstance(asker.error, WorkerBrokeOff) and fleet.worker.in_flight == 0


async def test_a_request_that_is_abandoned_while_it_connects_leaves_nothing() -> None:
    connected = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        assert await reader.read() == b"", "nothing is asked"
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for turns in range(8):
            upstream = Upstream(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
            worker = Worker(WorkerInfo(worker_id="one", url=url, models=(ModelInfo(id="one"),)))
            asker = Asker()
            exchange = Exchange(upstream, worker, asker)
            exchange.send([b""])
            for _ in range(turns):
                await asyncio.sleep(0)
            exchange.abandon()
            await settle()
            upstream.close_idle(0.0)
            await settle()
            assert (worker.in_flight, upstream.connections, asker.outcomes) == (0, 0, [])


@settings(max_examples=1000, deadline=None)
@given(
    base=st.sampled_from([b"", whole(b"{}"), event_stream("1"), whole(b"{}", status=400), STREAM_HEAD + b"\r\n"]),
    changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 5), st.binary(max_size=4)), max_size=4),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=5),
)
def test_any_bytes_give_one_outcome(base: bytes, changes: list[tuple[int, int, bytes]], sizes: list[int]) -> None:
    data = base
    for position, removed, piece in changes:
        start = position % (len(data) + 1)
        data = data[:start] + piece + data[start + removed :]
    pieces = []
    for size in (*sizes, len(data) or 1):
        piece, data = data[:size], data[size:]
        pieces += [piece] if piece else []
    answered(*pieces, lose=True)
