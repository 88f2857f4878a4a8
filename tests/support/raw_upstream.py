"""A worker made of bytes: a TCP server whose answers a test writes itself, good and bad ones."""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import BinaryIO, Self

from support.fake_openai import http_answer, stream_chunk, stream_head
from support.fleet import beat, until, worker_json
from support.processes import ControllerProcess, GatewayProcess
from support.wire import PATIENCE_S, Json, RawConnection, head

ONE_TRY = ("--retry-timeout", "0", "--max-replays", "0")
"""Options of a gateway that passes on what a worker does, the first time that it does it."""

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def whole(body: bytes, *headers: str, status: int = 200) -> bytes:
    """A JSON answer, after which the connection may be used again."""
    return http_answer(body, *headers, status=status, connection="keep-alive")


def event_stream(*texts: str) -> bytes:
    """A whole stream of an event for each text, after which the connection may be used again."""
    events = [event(text) for text in (*texts, "[DONE]")]
    return stream_head(connection="keep-alive") + b"".join(map(stream_chunk, events)) + stream_chunk(b"")


def event(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


class Call:
    """A request whose head has come. Its body is read by whoever asks for it, at the latest behind the script.

    `connection` numbers the connection, `position` the request on it, both from 1.
    """

    def __init__(self, sock: socket.socket, file: BinaryIO, lines: list[str], connection: int, position: int) -> None:
        self._sock = sock
        self._file = file
        self._body: bytes | None = None
        self.is_closed = False
        self.connection = connection
        self.position = position
        self.method, self.target, _ = lines[0].split(" ")
        self.header_lines = lines[1:]
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self.sent = 0
        """Bytes that `send` could hand over."""

    @property
    def body(self) -> bytes:
        """The whole body, which this waits for."""
        if self._body is None:
            self._body = self._file.read(int(self.headers["content-length"]))
        return self._body

    @property
    def json(self) -> Json:
        parsed: Json = json.loads(self.body)
        return parsed

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            size = self._sock.send(view[: 2**20])
            self.sent += size
            view = view[size:]

    def serve(self) -> None:
        """Answer as a good worker does, naming the request: `{"id": its x-request-id}`, or three events."""
        named = json.dumps({"id": self.headers["x-request-id"]})
        self.send(event_stream("1", "2", named) if self.json.get("stream") else whole(named.encode()))

    def until_left(self) -> None:
        """Wait until the gateway has closed the connection."""
        with suppress(OSError):
            while self._file.read(65536):
                pass
        self.is_closed = True

    def close(self) -> None:
        """Close the connection properly: all that was sent arrives."""
        self.end_sending()
        self.until_left()

    def end_sending(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Drop the connection with a RST."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.is_closed = True


Script = Callable[[Call], object]


def starting(call: Call) -> None:
    """Answer a probe as a worker that lives, but has no engine yet."""
    call.send(whole(b"{}", status=503))


class RawUpstream:
    """Gives every request to `script`, in a thread per connection; connections are kept alive.

    `calls` are the requests so far, `connections` counts the connections. A connection on which nothing comes for
    `idle_s` is closed. Who only asks whether it lives is answered by `ready`, and is not among the calls.
    """

    def __init__(self) -> None:
        self.script: Script = Call.serve
        self.ready: Script = starting
        self.idle_s: float | None = None
        self.calls: list[Call] = []
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def until_called(self, number: int = 1) -> Call:
        """The request of that number."""
        return until(lambda: self.calls[number - 1 :], f"{number} requests at the worker")[0]

    def end_connections(self) -> None:
        """End the connections that are open, as a worker does that has been idle for long or restarts."""

        def all_ended() -> bool:
            for sock in list(self._open):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            return not self._open

        until(all_ended, "the end of the connections")

    def forget(self) -> None:
        """Be as new: no calls, no connections, good answers."""
        self.script, self.ready, self.idle_s = Call.serve, starting, None
        self.end_connections()
        self.calls = []

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                self._open.add(sock)
                threading.Thread(target=self._serve, args=(sock, self.connections), daemon=True).start()

    def _serve(self, sock: socket.socket, connection: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with suppress(OSError), sock, sock.makefile("rb") as file:  # the gateway may leave at any time
                self._answer_all(sock, file, connection)
        finally:
            self._open.discard(sock)

    def _answer_all(self, sock: socket.socket, file: BinaryIO, connection: int) -> None:
        for position in count(1):
            sock.settimeout(self.idle_s)
            if (lines := _head_lines(file)) is None:
                return
            sock.settimeout(PATIENCE_S)
            call = Call(sock, file, lines, connection, position)
            if call.target == "/ready":
                self.ready(call)
            else:
                self.calls.append(call)
                self.script(call)
            if call.is_closed:
                return
            assert call.method == "GET" or call.body is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.end_connections()


def _head_lines(file: BinaryIO) -> list[str] | None:
    """The lines of the next request's head; None where no whole one comes."""
    lines = []
    while (line := file.readline()) != b"\r\n":
        if not line.endswith(b"\r\n"):
            return None
        lines.append(line[:-2].decode("latin-1"))
    return lines


@dataclass(frozen=True)
class RawFleet:
    """A gateway before one raw worker, which serves the model `one` and counts as a worker of ours."""

    upstream: RawUpstream
    gateway: GatewayProcess
    controller: ControllerProcess

    def connect(self) -> RawConnection:
        return RawConnection(self.gateway.url)

    def until_left(self, call: Call) -> None:
        """Wait until the gateway has dropped the connection of a call whose script waits for just that."""
        until(lambda: call.is_closed, "the gateway leaves the worker")

    def assert_well(self) -> None:
        """It lives, answers, and has had no error of its own."""
        assert self.gateway.alive()
        with self.connect() as connection:
            connection.send(head("GET", "/health"))
            assert connection.read_response().status == 200
        _, trace, rest = self.gateway.output.partition("Traceback")
        assert not trace, rest[:4000]


_NUMBERS = count(100_000)


@contextmanager
def raw_fleet(*arguments: str, env: dict[str, str] | None = None, api_key: str | None = None) -> Iterator[RawFleet]:
    """`arguments` and `env` are the gateway's."""
    with RawUpstream() as upstream, ControllerProcess("--expiry", "600", "--heartbeat-interval", "500") as controller:
        with controller.http() as http:
            beat(http, worker_json("raw", upstream.url, "one"))
        with GatewayProcess(
            *ONE_TRY, *arguments, controllers=[controller], models=["one"], api_key=api_key, env=env
        ) as gateway:
            yield RawFleet(upstream, gateway, controller)


def ask(stream: bool = False, **fields: object) -> Json:
    """The body of a good request, unlike any other: one that a worker broke off is quarantined."""
    return {
        "model": "one",
        "messages": [{"role": "user", "content": f"hi {next(_NUMBERS)}"}],
        "stream": stream,
        **fields,
    }


def hot(body: Json | bytes, *headers: str, path: str = CHAT) -> bytes:
    """A whole request for a worker, as bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("POST", path, f"content-length: {len(content)}", *headers) + content
