"""uvicorn as every server of ours runs it."""

import asyncio
import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, cast

import uvicorn
from starlette.types import ASGIApp

from chatfleet.core.errors import ConfigurationError
from chatfleet.http.protocol import HttpProtocol

logger = logging.getLogger(__name__)

GRACEFUL_SHUTDOWN_S: Final = 10
BACKLOG: Final = 4096
TICK_S: Final = 1.0
_LAST_WORDS_S: Final = 0.1


class Server(uvicorn.Server):
    """A server that leaves signals as it found them: SIGINT and SIGTERM end `serve`, not the process.

    `on_stop` is called once, when the end begins: before what is running has finished. Its connections are told the
    time every `tick_s`.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None] | None, tick_s: float) -> None:
        super().__init__(config)
        self._on_stop = on_stop
        self._tick_s = tick_s

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        ticking = asyncio.create_task(self._tick())
        try:
            await super().serve(sockets)
        finally:
            ticking.cancel()
            await asyncio.wait({ticking})

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            now = time.monotonic()
            for connection in self._connections():
                try:
                    connection.tick(now)
                except Exception:
                    logger.exception("a connection is cut, since looking after it failed")
                    connection.transport.abort()

    def _connections(self) -> list[HttpProtocol]:
        return cast(list[HttpProtocol], list(self.server_state.connections))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if connections := self._connections():
            for connection in connections:
                connection.drop()
            await asyncio.sleep(_LAST_WORDS_S)

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
            for connection in self._connections():
                connection.drop()
            for task in self.server_state.tasks:  # else uvloop waits for their connections all the same
                task.cancel()
        elif self._on_stop is not None:
            self._on_stop()
        self.should_exit = True


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Cancel ")  # streams that end with the server are no error of its


def make_server(
    app: ASGIApp,
    *,
    protocol: Callable[..., HttpProtocol] = HttpProtocol,
    on_stop: Callable[[], None] | None = None,
    trusted_proxies: str = "",
    tick_s: float = TICK_S,
    tls: ssl.SSLContext | None = None,
) -> Server:
    """`trusted_proxies` are the addresses and networks, comma-separated, whose X-Forwarded-* headers are believed.

    `tick_s` is how exact the protocol's times are.
    """
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    config = uvicorn.Config(
        app,
        http=cast(type[HttpProtocol], protocol),
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
        backlog=BACKLOG,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=trusted_proxies,
    )
    config.load()
    config.ssl = tls
    return Server(config, on_stop, tick_s)


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


def base_url(host: str, port: int, *, tls: bool = False) -> str:
    """Where a client on this machine reaches a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)
    return f"http{'s' if tls else ''}://{f'[{reachable}]' if ':' in reachable.strip('[]') else reachable}:{port}"
