"""Bytes that a machine has spoilt, given to both of the gateway's parsers: that of requests and that of answers."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import httptools
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from support.fake_openai import stream_chunk
from support.raw_upstream import CHAT, Call, RawFleet, ask, event_stream, hot, raw_fleet, whole
from support.wire import PATIENCE_S, RawConnection, RawResponse, error_object, head

FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

BODY = json.dumps(ask()).encode()
CHUNKED = head("POST", CHAT, "transfer-encoding: chunked")
REQUESTS = [
    hot(ask(), "x-request-id: a"),
    hot(ask(stream=True)),
    CHUNKED + stream_chunk(BODY) + stream_chunk(b""),
    CHUNKED + b"5;a=b\r\n%b\r\n" % BODY[:5] + stream_chunk(BODY[5:]) + b"0\r\nx: y\r\n\r\n",
    head("GET", "/v1/models"),
    head("GET", "/nothing", "content-length: 5") + b"12345",
]
ANSWERS = [
    whole(b'{"id": "a"}', "x-chatfleet-ignored: a"),
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    b'5;a=b\r\n{"id"\r\n6\r\n: "a"}\r\n0\r\nx: y\r\n\r\n',
    event_stream("1", '{"choices": []}', "3"),
    b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + event_stream("1"),
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: 1\n\ndata: [DONE]\n\n",
    whole(b'{"error": {"message": "m", "type": "t", "param": null, "code": "c"}}', "retry-after: 1", status=429),
]
SPOILERS = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"\n\n",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"-",
        b"+",
        b"0",
        b"f",
        b"\xff",
    ),
    *(b"content-length: 5\r\n", b"content-length: 0\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n"),
    *(b"0\r\n\r\n", b"fffffffffffffffff", b"HTTP/1.1 200 OK\r\n\r\n", b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"),
]

Spoil = tuple[str, int, int, bytes]
spoils = st.lists(
    st.tuples(
        st.sampled_from(["insert", "remove", "double"]),
        st.integers(0, 400),
        st.integers(1, 20),
        st.sampled_from(SPOILERS) | st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def spoilt(data: bytes, changes: list[Spoil]) -> bytes:
    """The bytes with pieces put in, taken out and said twice. Positions past the end count on from the start."""
    for what, position, size, piece in changes:
        start = position % (len(data) + 1)
        match what:
            case "insert":
                data = data[:start] + piece + data[start:]
            case "remove":
                data = data[:start] + data[start + size :]
            case _:
                data = data[: start + size] + data[start:]
    return data


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes in the pieces between these positions."""
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[RawFleet]:
    with raw_fleet(env={"CHATFLEET_HEAD_TIMEOUT": "5", "CHATFLEET_BODY_TIMEOUT": "5"}) as fleet:
        yield fleet


def conversation(fleet: RawFleet, pieces: list[bytes]) -> list[RawResponse]:
    """What is answered to a client that sends these pieces and then says that it has sent all."""
    with RawConnection(fleet.gateway.url, timeout_s=20) as connection:
        try:
            for piece in pieces:
                connection.send(piece)
                if len(pieces) > 1:
                    time.sleep(0.001)  # else they would arrive as one
            return connection.end_sending().read_responses()
        except OSError as exc:
            if isinstance(exc, TimeoutError) or b"connection: close" not in b"".join(pieces):
                raise
            reject()  # who asks for the end of the connection and sends on may be reset (RFC 9112, 9.6)


class _Bodies:
    """Whether what httptools has read ends inside a body."""

    is_open = False

    def on_headers_complete(self) -> None:
        self.is_open = True

    def on_message_complete(self) -> None:
        self.is_open = False


def ends_inside_a_body(data: bytes) -> bool:
    bodies = _Bodies()
    with suppress(httptools.HttpParserError):
        httptools.HttpRequestParser(bodies).feed_data(data)
    return bodies.is_open


def same_or_cut(data: bytes, responses: list[RawResponse], others: list[RawResponse]) -> bool:
    """Whether the statuses are the same, however the bytes came. Only where the client breaks off or spoils a body it
    depends on the time: the request may have been refused for its head already, and one that is not whole in the end
    is not answered. Where a connection ends that refused a body before all of it came, more or fewer of the requests
    behind it may have been there already.
    """
    shorter, longer = sorted((responses, others), key=len)
    statuses = [response.status for response in shorter]
    same = statuses == [response.status for response in longer[: len(shorter)]]
    if same and len(shorter) == len(longer):
        return True
    if ends_inside_a_body(data):
        last = longer[-1].status
        before = [response.status for response in longer[:-1]]
        return last >= 400 and (statuses == before or (statuses[:-1] == before and statuses[-1] >= 400))
    return same and bool(shorter) and shorter[-1].headers.get("connection") == "close"


@FUZZ
@given(
    requests=st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=4),
    changes=spoils,
    cuts=st.lists(st.integers(0, 1500), min_size=1, max_size=4),
)
@pytest.mark.long
def test_whatever_a_client_sends_it_gets_http_and_harms_nobody(
    fuzzed: RawFleet, requests: list[bytes], changes: list[Spoil], cuts: list[int]
) -> None:
    fuzzed.upstream.script, fuzzed.upstream.idle_s = lenient, None
    data = spoilt(b"".join(requests), changes)
    responses = conversation(fuzzed, [data])
    for response in responses:
        assert response.status == 200 or 400 <= response.status < 500, (data, response)
        assert response.headers["x-request-id"], (data, response)
        if response.status >= 400:
            assert response.headers["content-type"] == "application/json", (data, response)
            assert error_object(response.body)["type"] == "invalid_request_error", (data, response)
        assert response.headers.get("connection") != "close" or response is responses[-1], (data, responses)
    in_pieces = conversation(fuzzed, split(data, cuts))
    assert same_or_cut(data, responses, in_pieces), (data, responses, in_pieces)
    fuzzed.assert_well()


def lenient(call: Call) -> None:
    """A good worker that looks at nothing but whether to stream."""
    streamed = isinstance(parsed := json.loads(call.body), dict) and parsed.get("stream")
    call.send(event_stream("1") if streamed else whole(b"{}"))


@FUZZ
@given(
    answer=st.sampled_from(ANSWERS),
    changes=spoils,
    cuts=st.lists(st.integers(0, 400), max_size=3),
    stream=st.booleans(),
    closes=st.booleans(),
)
def test_whatever_a_worker_answers_the_client_gets_http(
    fuzzed: RawFleet, answer: bytes, changes: list[Spoil], cuts: list[int], stream: bool, closes: bool
) -> None:
    """The start of the status line stays. A worker that does not close takes the next request on its connection."""
    data = answer[:9] + spoilt(answer[9:], changes)

    all_sent = threading.Event()

    def reply(call: Call) -> None:
        assert call.body
        try:
            for piece in split(data, cuts):
                call.send(piece)
                if cuts:
                    time.sleep(0.001)
        finally:
            all_sent.set()
        if closes:
            call.close()
        else:
            fuzzed.upstream.script = Call.serve  # a request on the same connection is answered well

    fuzzed.upstream.script, fuzzed.upstream.idle_s = reply, 0.05
    with RawConnection(fuzzed.gateway.url, timeout_s=20) as connection:
        response = connection.send(hot(ask(stream), "x-request-id: first")).read_response()
        assert response.headers["x-request-id"] == "first", (data, response)
        if response.status != 200:
            assert 400 <= response.status < 600, (data, response)
            assert response.headers["content-type"] == "application/json", (data, response)
            assert error_object(response.body)["code"] != "internal_error", (data, response)
        elif response.headers["content-type"].startswith("text/event-stream"):
            assert response.body.endswith(b"\n\n") or not response.body, (data, response)

        assert all_sent.wait(PATIENCE_S)  # what is left of it would be the next answer's beginning
        fuzzed.upstream.script = Call.serve
        again = connection.send(hot(ask(), "x-request-id: second")).read_response()
        assert (again.status, again.body) == (200, b'{"id": "second"}'), (data, again)
    fuzzed.assert_well()
