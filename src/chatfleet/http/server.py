"""uvicorn as every server of ours runs it."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from chatfleet.core.errors import ConfigurationError, InvalidRequest
from chatfleet.http.errors import error_json

GRACEFUL_SHUTDOWN_S = 10


class JsonErrorProtocol(HttpToolsProtocol):
    """Answers what is not HTTP with the one error form, too."""

    def send_400_response(self, msg: str) -> None:
        body = error_json(InvalidRequest("What was received is not a valid HTTP/1.1 request."))
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()


class Server(uvicorn.Server):
    """A server that leaves signals as it found them: SIGINT and SIGTERM end `serve`, not the process."""

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
        self.should_exit = True


def make_server(app: FastAPI) -> Server:
    config = uvicorn.Config(
        app,
        http=JsonErrorProtocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
        backlog=4096,
    )
    return Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises ConfigurationError when the address cannot be had."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        raise ConfigurationError(
            f"Cannot listen on {host}:{port}: {exc.strerror or exc}. "
            "Is another server running there? Choose another --port (0 takes a free one) or --host."
        ) from exc
    listener.setblocking(False)
    return listener
