"""benchmarks/engines/client.py reads streams of any server, and notices what is wrong with them."""

import importlib
import re
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "engines"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
DONE = b"data: [DONE]\n\n"
PAUSE = b""


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("client")
    finally:
        sys.path.remove(str(FOLDER))
        del sys.modules["client"]


def text(content: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content": "%s"}}]}\n\n' % content.encode()


def usage(prompt_tokens: int, completion_tokens: int) -> bytes:
    counts = b'"completion_tokens":%d,"prompt_tokens":%d' % (completion_tokens, prompt_tokens)
    return b'data: {"choices":[],"usage":{%s}}\n\n' % counts


def letters(body: bytes) -> int:
    """Of the message in a request, which the server counts as a token each."""
    found = re.search(rb'"content": "([a-z ]*)"', body)
    assert found is not None
    return len(found[1].split())


@contextmanager
def server(pieces: Callable[[bytes], Sequence[bytes]]) -> Iterator[int]:
    """Its port. It answers each connection's request with the pieces, each a chunk in a write of its own."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            received = b""
            while not received.endswith(b"}}") and b'"max_tokens"' not in received.partition(b"\r\n\r\n")[2]:
                received += self.request.recv(65536)
            for piece in pieces(received):
                if piece == PAUSE:
                    time.sleep(0.05)
                else:
                    self.request.sendall(piece)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running.server_address[1]
        finally:
            running.shutdown()
            thread.join()


def chunk(*events: bytes) -> bytes:
    content = b"".join(events)
    return b"%x\r\n%s\r\n" % (len(content), content)


def ask(client: Any, pieces: Callable[[bytes], Sequence[bytes]], streams: int = 1) -> Any:
    with server(pieces) as port:
        return client.ChatClient(port, "model", client.EXACT).ask(streams, 20, 3)


def three_tokens(body: bytes) -> list[bytes]:
    """Five of the template, and the letters."""
    tokens = 1 if b'"max_tokens": 1,' in body else 3
    said = [chunk(text("a")), PAUSE, chunk(text("b"), text("c"))] if tokens == 3 else [chunk(text("a"))]
    return [HEAD, chunk(ROLE), PAUSE, *said, chunk(usage(5 + letters(body), tokens)), chunk(DONE)]


def test_a_prompt_has_the_tokens_asked_for_with_those_of_the_template(client: Any) -> None:
    answers = ask(client, three_tokens, streams=3)
    assert [(answer.prompt_tokens, answer.completion_tokens) for answer in answers] == [(20, 3)] * 3


def test_the_first_token_is_the_first_text_and_no_role(client: Any) -> None:
    (answer,) = ask(client, three_tokens)
    assert answer.first_s - answer.sent_s >= 0.05
    assert [arrival.events for arrival in answer.arrivals] == [1, 2]
    assert answer.arrivals[1].at_s - answer.arrivals[0].at_s >= 0.04 and answer.done_s >= answer.arrivals[1].at_s


def test_a_stream_may_end_without_done(client: Any) -> None:
    (answer,) = ask(client, lambda body: [*three_tokens(body)[:-1], b"0\r\n\r\n"])
    assert answer.completion_tokens == 3


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        (lambda body: [b"HTTP/1.1 422 No\r\ncontent-length: 9\r\n\r\nbad field"], "refused.*bad field"),
        (lambda body: three_tokens(body)[:-2], "broke off"),
        (lambda body: [HEAD, chunk(text("a")), chunk(DONE)], "no usage"),
        (lambda body: [HEAD, chunk(text("a")), chunk(usage(5 + letters(body), 1)), chunk(DONE)], r"3 .*got \(20, 1\)"),
    ],
    ids=["refused", "broken off", "without usage", "too short"],
)
def test_a_stream_that_is_not_as_asked_is_an_error(
    client: Any, pieces: Callable[[bytes], Sequence[bytes]], why: str
) -> None:
    with pytest.raises(RuntimeError, match=f"(?s){why}"):
        ask(client, pieces)
