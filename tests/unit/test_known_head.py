"""A head that is known is read as a parser would read it."""

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfleet.http.known_head import KnownHead

HEADS = [
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\nx-a: b\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nContent-Length:%d\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\nx-content-length: 1\r\nCONTENT-LENGTH: \t%d\r\n\r\n",
]
BODIES = [b"{}", b"x" * 10, b"x" * 1000, b"\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"]
PIECES = [
    b"\r\n",
    b"\r",
    b"\n",
    b" ",
    b"0",
    b"1",
    b":",
    b"\0",
    b"+",
    b",",
    b"\xb2",
    b"\r\n\r\n",
    b"content-length: 2\r\n",
]


class Messages:
    """What a parser makes of bytes: the head and the body of every message."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, list[tuple[bytes, bytes]], bytes]] = []
        self._url, self._headers, self._body = b"", list[tuple[bytes, bytes]](), b""

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", [], b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() != b"content-length":
            self._headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.found.append((self._url, self._headers, self._body))


def parsed(data: bytes) -> list[tuple[bytes, list[tuple[bytes, bytes]], bytes]]:
    messages = Messages()
    httptools.HttpRequestParser(messages).feed_data(data)
    return messages.found


@settings(max_examples=1000, deadline=None)
@given(
    head=st.sampled_from(HEADS),
    first=st.sampled_from(BODIES),
    second=st.sampled_from(BODIES),
    changes=st.lists(
        st.tuples(st.integers(0, 2000), st.integers(0, 3), st.sampled_from(PIECES) | st.binary(max_size=3)), max_size=3
    ),
)
def test_whatever_is_taken_for_a_known_head_a_parser_reads_so(
    head: bytes, first: bytes, second: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    message = head % len(first) + first
    known = KnownHead.of(message)
    assert known is not None and known.body_of(message) == first
    data = head % len(second) + second
    for position, removed, piece in changes:
        start = position % (len(data) + 1)
        data = data[:start] + piece + data[start + removed :]
    body = known.body_of(data)
    if not changes:
        assert body == second
    if body is not None:
        ((url, headers, _),) = parsed(message)
        assert parsed(data) == [(url, headers, body)]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\n{}",
        b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}P",
        b"POST / HTTP/1.1\r\ncontent-length: 2 \r\n\r\n{}",
        b"POST / HTTP/1.1\r\ncontent-length: 00000002\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nx: \r\n\r\ncontent-length: 2\r\n\r\n{}",
    ],
)
def test_no_head_is_known_of_what_is_not_one_whole_message_with_a_length(message: bytes) -> None:
    assert KnownHead.of(message) is None


def test_the_same_head_is_not_known_where_bytes_are_missing_or_left_over() -> None:
    message = HEADS[0] % 2 + b"{}"
    known = KnownHead.of(message)
    assert known is not None
    for size in range(len(message)):
        assert known.body_of(message[:size]) is None
    for more in (b"\r", b"\r\n", b"P", message):
        assert known.body_of(message + more) is None
    assert known.body_of(HEADS[0] % 0) == b""
    assert known.body_of(message.replace(b": 2", b": 002")) == b"{}"
    for digits in (b"", b" 2", b"2 ", b"+2", b"-2", b"2.0", b"0x2", b"\xb2", b"2,2", b"00000002"):
        assert known.body_of(message.replace(b": 2", b": " + digits)) is None
