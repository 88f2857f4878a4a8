"""One connection to a worker: whatever comes on it, whoever waits for the answer is told one outcome."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfleet.core.errors import WorkerFailed
from chatfleet.dispatch.connection import MAX_HEAD_BYTES, Headers, WorkerConnection
from support.data_plane import FakeTransport
from support.fake_openai import http_answer, stream_chunk, stream_head
from support.raw_upstream import event_stream, whole

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\n12345\r\n3\r\n678\r\n0\r\nx: y\r\n\r\n"
UNFRAMED = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nhello"


class Home:
    def __init__(self) -> None:
        self.made_count = 0
        self.idle: list[WorkerConnection] = []
        self.forgotten: list[WorkerConnection] = []

    def made(self, connection: WorkerConnection) -> None:
        self.made_count += 1

    def take_back(self, connection: WorkerConnection) -> None:
        self.idle.append(connection)

    def forget(self, connection: WorkerConnection) -> None:
        self.forgotten.append(connection)


class Answer:
    """What was told of an answer. `outcomes` are the last words, of which there is one."""

    def __init__(self, on_call: Callable[[str], None] = lambda name: None) -> None:
        self.status = 0
        self.headers: Headers = {}
        self.body = b""
        self.outcomes: list[str] = []
        self._on_call = on_call

    def answer_began(self, status: int, headers: Headers) -> None:
        assert not self.status and not self.outcomes
        self.status, self.headers = status, dict(headers)
        self._on_call("began")

    def answer_data(self, data: bytes) -> None:
        assert self.status and data and not self.outcomes
        self.body += data
        self._on_call("data")

    def answer_ended(self, *, is_framed: bool) -> None:
        self.outcomes.append("ended" if is_framed else "ended with the connection")
        self._on_call("ended")

    def answer_failed(self, error: WorkerFailed) -> None:
        self.outcomes.append("failed")
        self._on_call("failed")

    def went_stale(self) -> None:
        self.outcomes.append("stale")
        self._on_call("stale")

    def told(self) -> tuple[int, Headers, bytes, list[str]]:
        return self.status, self.headers, self.body, self.outcomes


class Worker:
    """A connection and who asks on it."""

    def __init__(self) -> None:
        self.home, self.transport = Home(), FakeTransport()
        self.connection = WorkerConnection(self.home)
        self.connection.connection_made(self.transport)

    def ask(self, answer: Answer | None = None) -> Answer:
        answer = answer or Answer()
        self.home.idle.clear()
        self.connection.send([b"POST", b" /"], answer)
        return answer

    def give(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.transport.is_closing():
                self.connection.data_received(piece)

    @property
    def is_idle(self) -> bool:
        """Whether the next request may go on it."""
        return self.home.idle == [self.connection] and not self.transport.is_closing()

    def lose(self, exc: Exception | None = None) -> None:
        self.transport.close()
        self.connection.connection_lost(exc)


def used() -> Worker:
    """One that has had an answer already, of a head that may come again."""
    worker = Worker()
    worker.ask()
    worker.give(whole(b"{}"))
    assert worker.is_idle
    return worker


def split_at(data: bytes, *positions: int) -> list[bytes]:
    return [data[start:end] for start, end in zip((0, *positions), (*positions, len(data)), strict=True)]


@pytest.mark.parametrize(
    "data",
    [
        whole(b'{"id": "a"}', "x-b: c"),
        whole(b"{}"),
        whole(b"", status=204).replace(b"content-length: 0\r\n", b""),
        CHUNKED,
        event_stream("1", "2"),
        INTERIM + whole(b"{}"),
        INTERIM + CHUNKED,
        http_answer(b"no", status=429),
    ],
)
def test_an_answer_is_the_same_wherever_it_is_cut(data: bytes) -> None:
    for begin in (Worker, used):
        expected = begin()
        first = expected.ask()
        expected.give(data)
        assert first.outcomes == ["ended"]
        for position in range(len(data)):
            worker = begin()
            answer = worker.ask()
            worker.give(*split_at(data, position)[position == 0 :])
            assert answer.told() == first.told() and worker.is_idle == expected.is_idle
        worker = begin()
        answer = worker.ask()
        worker.give(*(data[start : start + 1] for start in range(len(data))))
        assert answer.told() == first.told() and worker.is_idle == expected.is_idle


def test_a_head_that_comes_again_is_told_again() -> None:
    worker = Worker()
    for body in (b"{}", b'{"a": 1}', b"[]"):
        answer = worker.ask()
        worker.give(whole(body, "x-load: 1"))
        assert answer.told() == (200, {**answer.headers, b"x-load": b"1"}, body, ["ended"]) and worker.is_idle
    for data in (whole(b"{}", "x-load: 2"), CHUNKED, whole(b"no", "x-load: 1", status=503), whole(b"{}", "x-load: 1")):
        fresh, answer = Worker(), worker.ask()
        expected = fresh.ask()
        worker.give(data)
        fresh.give(data)
        assert answer.told() == expected.told() and worker.is_idle


def test_what_comes_behind_an_answer_with_a_known_head_ends_the_connection() -> None:
    for behind in (b"\0", b"HTTP/1.1 200 OK\r\n", whole(b"{}")):
        worker = used()
        answer = worker.ask()
        worker.give(whole(b"{}") + behind)
        assert answer.outcomes == ["ended"] and answer.body == b"{}" and not worker.is_idle
        worker = used()
        worker.give(behind)
        assert worker.transport.was_aborted


def test_a_whole_interim_head_is_not_known_as_an_answer() -> None:
    inner = whole(b"{}")
    strange = b"HTTP/1.1 103 Early Hints\r\ncontent-length: %d\r\n\r\n" % len(inner) + inner
    worker = Worker()
    for _ in range(3):
        answer = worker.ask()
        worker.give(strange)
        assert (answer.status, answer.body, answer.outcomes) == (200, b"{}", ["ended"])


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: a\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * MAX_HEAD_BYTES,
        CHUNKED.replace(b"5;", b"zz"),
    ],
)
def test_what_is_no_answer_fails_at_once_and_ends_the_connection(data: bytes) -> None:
    for begin in (Worker, used):
        worker = begin()
        answer = worker.ask()
        worker.give(*(data[start : start + 1000] for start in range(0, len(data), 1000)))
        assert answer.outcomes == ["failed"] and worker.transport.was_aborted
        worker.lose()
        assert answer.outcomes == ["failed"] and not worker.is_idle


@pytest.mark.parametrize("exc", [None, ConnectionResetError()])
def test_a_body_without_framing_ends_with_its_connection(exc: Exception | None) -> None:
    worker = Worker()
    answer = worker.ask()
    worker.give(*split_at(UNFRAMED, len(UNFRAMED) - 3))
    assert answer.outcomes == [] and answer.body == b"hello"
    worker.lose(exc)
    assert answer.outcomes == (["failed"] if exc else ["ended with the connection"])


@pytest.mark.parametrize("exc", [None, ConnectionResetError()])
def test_only_a_used_connection_that_brought_nothing_is_stale(exc: Exception | None) -> None:
    for begin, data, outcome in (
        (Worker, b"", "failed"),
        (used, b"", "stale"),
        (used, b"H", "failed"),
        (used, whole(b"{}")[:-1], "failed"),
        (used, b"HTTP/1.1 103 Early Hints\r\n\r\n", "failed"),
    ):
        worker = begin()
        answer = worker.ask()
        worker.give(*([data] if data else []))
        worker.lose(exc)
        assert answer.outcomes == [outcome]
        assert worker.home.forgotten == [worker.connection]


@pytest.mark.parametrize("data", [whole(b"{}"), event_stream("1"), INTERIM + CHUNKED, b"\0"])
@pytest.mark.parametrize("at", ["began", "data", "ended", "failed"])
def test_who_abandons_it_in_the_middle_is_told_nothing_more(at: str, data: bytes) -> None:
    for begin in (Worker, used):
        for size in (1, 20, 1000):
            worker, called = begin(), list[str]()

            def on_call(name: str, worker: Worker = worker, called: list[str] = called) -> None:
                called.append(name)
                if name == at:
                    worker.connection.abandon()

            worker.ask(Answer(on_call))
            worker.give(*(data[start : start + size] for start in range(0, len(data), size)))
            worker.lose()
            assert at not in called[:-1]
            if at in called:
                assert worker.transport.was_aborted


def test_it_reads_on_for_the_next_request_whoever_paused_it() -> None:
    worker = Worker()
    answer = worker.ask()
    worker.connection.pause()
    assert worker.transport.is_reading_paused
    worker.connection.resume()
    assert not worker.transport.is_reading_paused
    worker.connection.pause()
    worker.give(whole(b"{}"))  # it had been read before
    assert answer.outcomes == ["ended"] and worker.is_idle and not worker.transport.is_reading_paused


def test_an_answer_that_comes_before_the_request_is_sent_ends_the_connection() -> None:
    worker = used()
    answer = worker.ask()
    worker.transport.buffered = 100
    worker.give(whole(b"{}"))
    assert answer.outcomes == ["ended"] and worker.transport.was_aborted and not worker.is_idle


@settings(max_examples=1000, deadline=None)
@given(
    base=st.sampled_from(
        [b"", whole(b"{}"), CHUNKED, UNFRAMED, INTERIM + whole(b"{}"), stream_head() + stream_chunk(b"a")]
    ),
    changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 5), st.binary(max_size=4)), max_size=4),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=5),
    is_used=st.booleans(),
    exc=st.sampled_from([None, ConnectionResetError()]),
)
def test_any_bytes_give_one_outcome(
    base: bytes, changes: list[tuple[int, int, bytes]], sizes: list[int], is_used: bool, exc: Exception | None
) -> None:
    data = base
    for position, removed, piece in changes:
        start = position % (len(data) + 1)
        data = data[:start] + piece + data[start + removed :]
    worker = used() if is_used else Worker()
    answer = worker.ask()
    for number, size in enumerate((*sizes, len(data) or 1)):
        piece, data = data[:size], data[size:]
        if piece and (not answer.outcomes or number % 2):
            worker.give(piece)
    if not answer.outcomes:
        worker.lose(exc)
    assert len(answer.outcomes) == 1
    if worker.is_idle:
        again = worker.ask()
        worker.give(whole(b"again"))
        assert (again.body, again.outcomes) == (b"again", ["ended"])
    worker.lose()
    assert len(answer.outcomes) == 1 and worker.home.forgotten == [worker.connection] * len(worker.home.forgotten)
