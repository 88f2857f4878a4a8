"""The state of a connection: between requests, inside one, answering, with more in the pipeline, refused, draining,
half closed. Time is what `tick` is told."""

import asyncio
import io
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfleet.core.errors import ShuttingDown
from chatfleet.gateway.data_plane.protocol import GatewayProtocol
from chatfleet.http.known_head import MAX_MISSES
from chatfleet.http.protocol import KEEP_ALIVE_S, LINGER_S, STALLED_S
from chatfleet.http.trust import Keys
from support.data_plane import FakeGateway
from support.fake_openai import stream_chunk, stream_head
from support.raw_upstream import CHAT, EMBEDDINGS, ask, event, hot, whole
from support.wire import head

COLD = head("GET", "/health")
WAITING = head("POST", CHAT, "content-length: 100") + b"{"
GOOD = whole(b"{}")


@dataclass(frozen=True)
class Read:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


def read(data: bytes) -> list[Read]:
    """The whole answers that these bytes are; those that say that one is still to come are passed over."""
    file, found = io.BytesIO(data), []
    while line := file.readline():
        status = int(line.removeprefix(b"HTTP/1.1 ")[:3])
        headers = dict(_header_lines(file))
        if status >= 200:
            size = headers.get("content-length")
            found.append(Read(status, headers, _chunks(file) if size is None else file.read(int(size))))
            assert size is None or len(found[-1].body) == int(size)
    return found


def _header_lines(file: io.BytesIO) -> Iterator[tuple[str, str]]:
    while (line := file.readline()) != b"\r\n":
        name, _, value = line.decode().partition(":")
        yield name.lower(), value.strip()


def _chunks(file: io.BytesIO) -> bytes:
    body = b""
    while size := int(file.readline(), 16):
        body += file.read(size)
        assert file.readline() == b"\r\n"
    assert file.readline() == b"\r\n"
    return body


class Connection(FakeGateway):
    def send(self, data: bytes) -> None:
        self.protocol.data_received(data)

    def answers(self) -> list[Read]:
        return read(self.client.take())

    def tick(self, after_s: float) -> None:
        self.protocol.tick(time.monotonic() + after_s)

    async def lose(self) -> None:
        self.client.close()
        self.protocol.connection_lost(None)
        await self.settle()
        self.assert_free()


# --- the pipeline ---


async def test_three_thousand_tiny_requests_behind_a_slow_one_are_answered_in_order() -> None:
    connection = Connection()
    count = 3000
    bad = [hot(b"{", f"x-request-id: {number}") for number in range(count)]
    connection.send(hot(ask()) + b"".join(bad))
    assert connection.answers() == [] and connection.client.is_reading_paused
    connection.worker.answer_all(GOOD)
    for _ in range(count * 2):
        await asyncio.sleep(0)
    first, *others = connection.answers()
    assert first.status == 200
    assert [(other.status, other.headers["x-request-id"]) for other in others] == [(400, f"{n}") for n in range(count)]
    assert not connection.client.is_reading_paused and not connection.client.is_closing()
    await connection.lose()


async def test_answers_that_the_client_leaves_unread_hold_up_those_behind_them() -> None:
    connection = Connection()
    connection.send(hot(ask()) + hot(b"{") * 10 + COLD)
    connection.protocol.pause_writing()
    connection.worker.answer_all(GOOD)
    await connection.settle()
    assert [answer.status for answer in connection.answers()] == [200] and connection.client.is_reading_paused
    connection.protocol.resume_writing()
    await connection.settle()
    assert [answer.status for answer in connection.answers()] == [400] * 10 + [200]
    assert not connection.client.is_reading_paused
    await connection.lose()


async def test_what_comes_while_answers_are_unread_waits() -> None:
    connection = Connection()
    connection.protocol.pause_writing()
    connection.send(hot(b"{"))
    connection.send(hot(b"{"))
    await connection.settle()
    assert connection.answers() == []
    connection.protocol.resume_writing()
    await connection.settle()
    assert [answer.status for answer in connection.answers()] == [400, 400]
    await connection.lose()


async def test_a_refusal_comes_behind_the_answers_before_it() -> None:
    for before, statuses in ((hot(ask()) + COLD, [200, 200]), (COLD + hot(b"{"), [200, 400]), (b"", [])):
        for bad in (b"\0\r\n\r\n", head("POST", CHAT, "transfer-encoding: chunked") + b"zz\r\n"):
            connection = Connection()
            connection.send(before + bad + COLD)
            connection.send(COLD)
            connection.worker.answer_all(GOOD)
            await connection.settle()
            answers = connection.answers()
            assert [answer.status for answer in answers] == [*statuses, 400]
            assert [answer.closes for answer in answers] == [False] * len(statuses) + [True]
            assert connection.client.has_ended_sending and not connection.client.is_closing()
            connection.send(b"x" * 1000)
            connection.tick(LINGER_S + 0.1)
            assert connection.client.was_aborted
            await connection.lose()


async def test_nothing_is_begun_behind_an_answer_that_closes() -> None:
    refused = head("POST", CHAT, "transfer-encoding: chunked").replace(b"application/json", b"text/plain")
    for last in (hot(b"{", "connection: close"), refused + stream_chunk(b"{}") + stream_chunk(b"")):
        connection = Connection()
        connection.send(last + hot(ask()) + COLD)
        await connection.settle()
        assert len(connection.answers()) == 1 and not connection.worker.asked()
        await connection.lose()


@pytest.mark.parametrize("offer", [b"GET /health HTTP/1.1\r\nhost: a\r\nupgrade: a\r\nconnection: upgrade\r\n\r\n"])
@pytest.mark.parametrize("behind", [hot(b"{"), b"\0\r\n", head("POST", CHAT, "transfer-encoding: gzip")])
async def test_what_comes_behind_offers_to_upgrade_is_read_as_ever(offer: bytes, behind: bytes) -> None:
    for count in (1, 2, 200):
        connection = Connection()
        connection.send(offer * count + behind)
        for _ in range(count * 10):
            await asyncio.sleep(0)
        assert [answer.status for answer in connection.answers()] == [200] * count + [400]
        await connection.lose()


async def test_a_thousand_tunnels_in_one_read_are_refused_or_answered_each() -> None:
    connection = Connection()
    connection.send(b"CONNECT a:1 HTTP/1.1\r\n\r\n" * 1000 + COLD)
    for _ in range(10_000):
        await asyncio.sleep(0)
    answers = connection.answers()
    assert answers and all(answer.status in (200, 400) for answer in answers)
    await connection.lose()


# --- draining ---


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_ends_while_draining_closes_its_connection(stream: bool) -> None:
    connection = Connection()
    connection.send(hot(ask(stream)))
    connection.protocol.shutdown()
    connection.tick(5.0)
    assert not connection.client.is_closing()
    connection.worker.answer_all(stream_head() + stream_chunk(event("[DONE]")) + stream_chunk(b"") if stream else GOOD)
    (answer,) = connection.answers()
    assert answer.status == 200 and answer.closes and connection.client.is_closing()
    await connection.lose()


async def test_all_that_was_asked_before_the_drain_is_answered_and_the_last_answer_closes() -> None:
    connection = Connection()
    connection.send(hot(ask()) + COLD + hot(ask()))
    connection.protocol.shutdown()
    for _ in range(2):
        connection.worker.answer_all(GOOD)
        await connection.settle()
    answers = connection.answers()
    assert [(answer.status, answer.closes) for answer in answers] == [(200, False), (200, False), (200, True)]
    assert connection.client.is_closing()
    await connection.lose()


@pytest.mark.parametrize("is_known", [False, True])
async def test_an_idle_connection_lingers_and_answers(is_known: bool) -> None:
    connection = Connection()
    if is_known:
        connection.send(hot(ask()))
        connection.worker.answer_all(GOOD)
        connection.client.take()
    connection.protocol.shutdown()
    connection.tick(GatewayProtocol.idle_linger_s - 0.2)
    assert not connection.client.is_closing()
    connection.send(hot(ask()))
    connection.tick(GatewayProtocol.idle_linger_s + 0.2)
    connection.worker.answer_all(GOOD)
    (answer,) = connection.answers()
    assert answer.status == 200 and answer.closes and connection.client.is_closing()
    await connection.lose()

    idle = Connection()
    idle.protocol.shutdown()
    idle.tick(GatewayProtocol.idle_linger_s + 0.2)
    assert idle.client.is_closing()
    await idle.lose()


async def test_what_is_dropped_hears_why() -> None:
    connection = Connection()
    connection.send(hot(ask()) + hot(ask()))
    connection.protocol.drop()
    (answer,) = connection.answers()
    assert answer.status == ShuttingDown().status and answer.closes and connection.client.is_closing()
    await connection.lose()

    stream = Connection()
    stream.send(hot(ask(True)))
    stream.worker.answer_all(stream_head() + stream_chunk(event("1")))
    stream.protocol.drop()
    (answer,) = stream.answers()
    assert answer.status == 200 and answer.body.startswith(event("1")) and b'"error"' in answer.body
    assert stream.client.is_closing()
    await stream.lose()


# --- time ---


async def test_time_ends_what_is_too_slow() -> None:
    slow_head, slow_body, idle, between = Connection(), Connection(), Connection(), Connection()
    slow_head.send(COLD[:20])
    slow_body.send(WAITING)
    between.send(COLD)
    await between.settle()
    for connection, after_s, status in ((slow_head, 20.0, 408), (slow_body, 60.0, 408)):
        connection.tick(after_s - 1)
        assert connection.answers() == []
        connection.tick(after_s + 1)
        (answer,) = connection.answers()
        assert answer.status == status and answer.closes and connection.client.has_ended_sending
        assert not connection.client.is_closing()
        connection.tick(LINGER_S + 0.1)
        assert connection.client.was_aborted
        await connection.lose()
    for connection in (idle, between):
        connection.tick(KEEP_ALIVE_S - 1)
        assert not connection.client.is_closing()
        connection.tick(KEEP_ALIVE_S + 1)
        assert connection.client.is_closing()
        await connection.lose()


async def test_a_slow_head_or_body_behind_an_answer_has_its_time_from_then_on() -> None:
    for behind, after_s in ((COLD[:20], 20.0), (WAITING, 60.0)):
        connection = Connection()
        connection.send(hot(ask()) + behind)
        connection.tick(1000.0)
        assert not connection.client.is_closing()
        connection.worker.answer_all(GOOD)
        await connection.settle()
        assert [answer.status for answer in connection.answers()] == [200]
        connection.tick(after_s - 1)
        assert connection.answers() == []
        connection.tick(after_s + 1)
        assert [answer.status for answer in connection.answers()] == [408]
        await connection.lose()


async def test_a_silent_stream_is_kept_alive_by_comments_and_a_whole_answer_is_not() -> None:
    stream, quiet = Connection(), Connection()
    stream.send(hot(ask(True)))
    quiet.send(hot(ask()))
    for connection in (stream, quiet):
        connection.tick(14.0)
        assert connection.client.take() == b""
        connection.tick(16.0)
    assert quiet.client.take() == b""
    begun = stream.client.take()
    stream.worker.answer_all(stream_head() + stream_chunk(event("[DONE]")) + stream_chunk(b""))
    (answer,) = read(begun + stream.client.take())
    assert answer.body == b": keep-alive\n\n" + event("[DONE]")
    await stream.lose()
    await quiet.lose()


@pytest.mark.parametrize("closing", [False, True])
async def test_an_answer_that_nobody_reads_is_cut_in_the_end(closing: bool) -> None:
    connection = Connection()
    connection.send(hot(ask(), *(["connection: close"] if closing else [])))
    connection.protocol.pause_writing()
    connection.client.buffered = 100_000
    connection.worker.answer_all(GOOD)
    connection.tick(STALLED_S - 1)
    assert not connection.client.was_aborted
    connection.tick(STALLED_S + 1)
    assert connection.client.was_aborted
    await connection.lose()


# --- half closed ---


async def test_a_client_that_has_said_all_is_answered_and_what_it_did_not_finish_is_not() -> None:
    for behind in (b"", COLD[:10], WAITING, head("POST", "/nothing", "content-length: 5")):
        for before, count in ((hot(ask()) + COLD, 2), (COLD, 1)):
            connection = Connection()
            connection.send(before + behind)
            assert connection.protocol.eof_received()
            connection.worker.answer_all(GOOD)
            await connection.settle()
            assert [answer.status for answer in connection.answers()] == [200] * count
            assert connection.client.is_closing()
            await connection.lose()
    for only in (b"", COLD[:10], WAITING):
        connection = Connection()
        connection.send(only)
        assert not connection.protocol.eof_received()
        await connection.lose()


async def test_a_refusal_behind_others_comes_though_the_client_has_said_all() -> None:
    connection = Connection()
    connection.send(hot(ask()) + head("POST", CHAT, "transfer-encoding: chunked") + b"zz\r\n")
    assert connection.protocol.eof_received()
    connection.worker.answer_all(GOOD)
    await connection.settle()
    assert [answer.status for answer in connection.answers()] == [200, 400]
    assert connection.client.is_closing() or not connection.protocol.eof_received()
    await connection.lose()


# --- lost ---


def streaming(connection: Connection) -> None:
    connection.send(hot(ask(True)))
    connection.worker.answer_all(stream_head() + stream_chunk(event("1")))


STATES: dict[str, Callable[[Connection], object]] = {
    "idle": lambda connection: None,
    "inside a head": lambda connection: connection.send(COLD[:10]),
    "inside a body": lambda connection: connection.send(WAITING),
    "inside a chunk": lambda connection: connection.send(head("POST", CHAT, "transfer-encoding: chunked") + b"5\r\n{"),
    "at a worker": lambda connection: connection.send(hot(ask())),
    "streaming": streaming,
    "reading a large body": lambda connection: connection.send(hot(ask(user="x" * 300_000))),
    "before a slow application": lambda connection: (connection.cold.clear(), connection.send(COLD)),
    "with more in the pipeline": lambda connection: connection.send(hot(ask()) + COLD + hot(ask(True)) + WAITING),
    "while the next is due": lambda connection: (
        connection.send(hot(ask()) + hot(ask()) + COLD),
        connection.worker.answer_all(GOOD),
    ),
    "refused": lambda connection: connection.send(b"\0\r\n"),
    "refused behind others": lambda connection: connection.send(hot(ask()) + COLD + b"\0\r\n"),
    "draining": lambda connection: (connection.send(hot(ask())), connection.protocol.shutdown()),
    "half closed": lambda connection: (connection.send(hot(ask()) + hot(ask())), connection.protocol.eof_received()),
    "paused": lambda connection: (streaming(connection), connection.protocol.pause_writing()),
}


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("state", STATES)
async def test_a_lost_connection_leaves_nothing_behind(state: str, settled: bool) -> None:
    connection = Connection()
    STATES[state](connection)
    if settled:
        await connection.settle()
    await connection.lose()
    connection.worker.answer_all(GOOD)
    await connection.settle()
    connection.assert_free()
    connection.cold.set()
    await connection.settle()


@pytest.mark.parametrize("state", STATES)
async def test_ticks_and_drops_harm_no_state(state: str) -> None:
    for after_s in (0.0, 16.0, 70.0, 1000.0):
        for drain in (False, True):
            connection = Connection()
            STATES[state](connection)
            if drain:
                connection.protocol.shutdown()
            for _ in range(3):
                connection.tick(after_s)
                await connection.settle()
            connection.protocol.drop()
            connection.tick(after_s)
            await connection.settle()
            connection.cold.set()
            await connection.lose()


# --- known heads ---

SAME = [hot(ask(user=letter * size), "x-request-id: a") for letter, size in (("a", 1), ("b", 20), ("c", 300))]
OTHERS = [
    hot(ask(), "x-request-id: b", path=EMBEDDINGS),
    hot(ask(), "authorization: Bearer good", "x-request-id: c"),
    hot(ask(user="z"), "authorization: Bearer good", "x-request-id: c"),
    hot(ask(), "authorization: Bearer bad", "x-request-id: c"),
    hot(ask(), "connection: close", "x-request-id: d"),
    hot(ask(), "upgrade: h2c", "connection: upgrade", "x-request-id: e"),
    hot(ask(), "expect: 100-continue", "x-request-id: f"),
    head("POST", CHAT, "transfer-encoding: chunked", "x-request-id: g") + stream_chunk(b"{}") + stream_chunk(b""),
    hot(b"{", "x-request-id: a"),
    hot(b"", "x-request-id: a"),
    COLD,
    b"\r\n",
]


class Parsing(GatewayProtocol):
    """One that looks at every head anew."""

    def is_between_requests(self) -> bool:
        return False


_UNTOLD = re.compile(rb"x-request-id: req_[0-9a-f]{32}|date: [^\r]*")


async def conversation(protocol: type[GatewayProtocol], pieces: list[bytes], keys: Keys | None) -> list[bytes]:
    """All that goes to the worker and to the client."""
    connection = FakeGateway(protocol, keys=keys)
    seen: list[bytes] = []
    for piece in pieces:
        if connection.client.is_closing():
            break
        connection.protocol.data_received(piece)
        for _ in range(3):
            seen += connection.worker.answer_all(GOOD)
            await connection.settle()
    seen.append(_UNTOLD.sub(b"", connection.client.take()))
    connection.client.close()
    connection.protocol.connection_lost(None)
    connection.assert_free()
    return [_UNTOLD.sub(b"", data) for data in seen]


Change = tuple[int, int, int, bytes]


@settings(max_examples=400, deadline=None)
@given(
    messages=st.lists(st.sampled_from(SAME) | st.sampled_from(SAME + OTHERS), min_size=2, max_size=6),
    changes=st.lists(
        st.tuples(
            st.integers(1, 5),
            st.integers(0, 400),
            st.integers(0, 3),
            st.sampled_from([b"\r\n", b" ", b"0", b"1", b"content-length: 2\r\n", b"\0"]) | st.binary(max_size=2),
        ),
        max_size=2,
    ),
    joins=st.sets(st.integers(0, 5), max_size=2),
    cuts=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 300)), max_size=2),
    with_keys=st.booleans(),
)
def test_requests_are_the_same_whether_their_head_is_known_or_parsed(
    messages: list[bytes],
    changes: list[Change],
    joins: set[int],
    cuts: list[tuple[int, int]],
    with_keys: bool,
) -> None:
    if with_keys:
        good = b"x-request-id: a\r\nauthorization: Bearer good\r\n"
        messages = [message.replace(b"x-request-id: a\r\n", good) for message in messages]
    for index, position, removed, piece in changes:
        message = messages[index % len(messages)]
        start = position % (len(message) + 1)
        messages[index % len(messages)] = message[:start] + piece + message[start + removed :]
    pieces = [b""]
    for number, message in enumerate(messages):
        cut = dict(cuts).get(number, 0) % (len(message) + 1)
        if number in joins:
            pieces[-1] += message
        else:
            pieces += [message[:cut], message[cut:]]
    pieces = [piece for piece in pieces if piece]
    keys = Keys({"good": 0}) if with_keys else None
    with asyncio.Runner() as runner:
        known = runner.run(conversation(GatewayProtocol, pieces, keys))
        parsed = runner.run(conversation(Parsing, pieces, keys))
    assert known == parsed


async def test_a_head_that_is_known_is_not_parsed_and_one_that_always_differs_is_not_learnt() -> None:
    connection = Connection()

    class Sealed:
        """A parser that nothing may come to."""

        def feed_data(self, data: bytes) -> None:
            raise AssertionError(data)

    def ask_once(request: bytes) -> None:
        connection.send(request)
        assert len(connection.worker.answer_all(GOOD)) == 1
        assert [answer.status for answer in connection.answers()] == [200]

    ask_once(SAME[0])
    parser = connection.protocol.parser
    connection.protocol.parser = Sealed()  # type: ignore[assignment]
    for request in SAME * 10:
        ask_once(request)
    connection.protocol.parser = parser
    for number in range(MAX_MISSES + 5):
        ask_once(hot(ask(), f"x-request-id: {number}"))
    connection.protocol.parser = Sealed()  # type: ignore[assignment]
    with pytest.raises(AssertionError):
        connection.send(hot(ask(), f"x-request-id: {MAX_MISSES + 4}"))
    connection.protocol.parser = parser
    await connection.lose()
