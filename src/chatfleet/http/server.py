"""uvicorn as every server of ours runs it."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from chatfleet.core.errors import ConfigurationError, InvalidRequest
from chatfleet.http.errors import error_json
from chatfleet.http.middleware import new_request_id

GRACEFUL_SHUTDOWN_S = 10
BACKLOG = 4096
MAX_HEAD_BYTES = 64 * 1024
MAX_PIPELINED = 8

_FRAMING = (b"content-length", b"transfer-encoding")


class JsonErrorProtocol(HttpToolsProtocol):
    """uvicorn's protocol with four differences.

    What is not HTTP is answered with the one error form, too. Request heads are bounded, which httptools does not
    do. Every request of a connection is told that its client is gone, where uvicorn tells the last pipelined one
    only. An offer to upgrade is ignored (RFC 9110, 7.8), where httptools drops the body of a request that makes one:
    Java's HTTP client offers h2c with every first request.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes: int | None = 0  # None while no head is being read
        self._unanswered: list[RequestResponseCycle] = []
        self._replaying_head = False

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._ignore_upgrade(data[exc.args[0] :])
        except httptools.HttpParserError:
            self._refuse("What was received is not a valid HTTP/1.1 request.")
        if self._head_bytes is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(f"The request line and headers are larger than {MAX_HEAD_BYTES // 1024} KB.")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read on with a parser that was told how the body is framed, and of no upgrade."""
        framing = [b"%b: %b\r\n" % header for header in self.headers if header[0] in _FRAMING]
        self.parser = httptools.HttpRequestParser(self)
        self._replaying_head = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        self._replaying_head = False
        if rest:
            self.data_received(rest)

    def on_message_begin(self) -> None:
        if not self._replaying_head:
            self._head_bytes = 0
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._replaying_head:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._replaying_head:
            super().on_header(name, value)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_headers_complete(self) -> None:
        if self._replaying_head:
            return
        self._head_bytes = None
        super().on_headers_complete()
        self._unanswered = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._unanswered.append(self.cycle)
        if 1 < len(self._unanswered) <= MAX_PIPELINED:
            self.flow.resume_reading()  # who does not read does not see that the client is gone

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in self._unanswered:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def _refuse(self, message: str) -> None:
        answering = any(cycle.response_started and not cycle.response_complete for cycle in self._unanswered)
        if not answering:  # a second head inside an answer would be taken for a part of it
            body = error_json(InvalidRequest(message))
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (new_request_id().encode(), len(body), body)
            )
        self.transport.close()


class Server(uvicorn.Server):
    """A server that leaves signals as it found them: SIGINT and SIGTERM end `serve`, not the process.

    `on_stop` is called once, when the end begins: before what is running has finished.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Finish what is running; at the second call, drop it."""
        if self.should_exit:
            self.force_exit = True
            for task in self.server_state.tasks:  # else uvloop waits for their connections all the same
                task.cancel()
        elif self._on_stop is not None:
            self._on_stop()
        self.should_exit = True


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Cancel ")  # streams that end with the server are no error of its


def make_server(app: ASGIApp, *, on_stop: Callable[[], None] | None = None, trusted_proxies: str = "") -> Server:
    """`trusted_proxies` are the addresses and networks, comma-separated, whose X-Forwarded-* headers are believed."""
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    config = uvicorn.Config(
        app,
        http=JsonErrorProtocol,
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
        backlog=BACKLOG,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=trusted_proxies,
    )
    return Server(config, on_stop)


def listen(host: str, port: int, fd: int | None = None) -> socket.socket:
    """A bound socket; port 0 takes a free one, and `fd` is one that the parent process has bound already.

    Raises ConfigurationError when the address cannot be had.
    """
    try:
        if fd is not None:
            inherited = socket.socket(fileno=fd)
            inherited.setblocking(False)
            return inherited
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # what holds the port from others; binding alone does not
    except OSError as exc:
        raise ConfigurationError(
            f"Cannot listen on {host}:{port}: {exc.strerror or exc}. "
            "Is another server running there? Choose another --port (0 takes a free one) or --host."
        ) from exc
    listener.setblocking(False)
    return listener


def base_url(host: str, port: int) -> str:
    """Where a client on this machine reaches a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)
    return f"http://{f'[{reachable}]' if ':' in reachable.strip('[]') else reachable}:{port}"
