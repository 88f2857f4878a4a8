"""uvicorn as every server of ours runs it."""

import asyncio
import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, cast

import uvicorn
from starlette.types import ASGIApp

from chatfleet.core.errors import ConfigurationError
from chatfleet.http.protocol import HttpProtocol

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S: Final = 10.0
BACKLOG: Final = 4096
TICK_S: Final = 1.0
_LAST_WORDS_S: Final = 0.1
_HANDSHAKE_S: Final = 1.0


class Server(uvicorn.Server):
    """A server that leaves signals as it found them: SIGINT and SIGTERM end `serve`, not the process.

    `on_stop` is called at the first of them: before what is running has finished. The connections are told the time
    every `tick_s`. Whoever has connected before the server ends is answered, who comes later is refused.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None] | None, tick_s: float) -> None:
        super().__init__(config)
        self._on_stop = on_stop
        self._tick_s = tick_s
        self._is_told = self._is_draining = False

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
                    if self._is_draining and not connection.is_draining:  # it was in its TLS handshake
                        connection.shutdown()
                    connection.tick(now)
                except Exception:
                    logger.exception("a connection is cut, since looking after it failed")
                    connection.transport.abort()

    def _connections(self) -> list[HttpProtocol]:
        return cast(list[HttpProtocol], list(self.server_state.connections))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._accept_the_rest(sockets or [])
        self._is_draining = True
        await super().shutdown(sockets)
        if connections := self._connections():
            for connection in connections:
                connection.drop()
            await asyncio.sleep(_LAST_WORDS_S)

    async def _accept_the_rest(self, listeners: Sequence[socket.socket]) -> None:
        """Close the listeners, but first take in those that wait there for a place on the loop, which accepts one in
        each round: the kernel would reset them."""
        accepted: list[socket.socket] = []
        for listener in listeners:
            with suppress(OSError):  # none is left
                for _ in range(BACKLOG):
                    accepted.append(listener.accept()[0])
        for server in self.servers:
            server.close()
        if accepted:
            connecting = [asyncio.ensure_future(self._connect(connection)) for connection in accepted]
            _, late = await asyncio.wait(connecting, timeout=_HANDSHAKE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*connecting, return_exceptions=True)  # one that has gone already is no news

    async def _connect(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            ),
            connection,
            ssl=self.config.ssl,
        )

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

    def finish(self) -> None:
        """Take nothing new, and end when what is running is done. Idempotent."""
        self.should_exit = True

    def stop(self) -> None:
        """What a signal does: tell `on_stop`, and finish what is running. The second one drops it."""
        if self._is_told:
            self.force_exit = True
            for connection in self._connections():
                connection.drop()
            for task in self.server_state.tasks:  # else uvloop waits for their connections all the same
                task.cancel()
        elif self._on_stop is not None:
            self._on_stop()
        self._is_told = True
        self.finish()


def _is_news(record: logging.LogRecord) -> bool:
    # Streams that end with the server are no error of its, and those that are cut have been logged.
    return not record.getMessage().startswith(("Cancel ", "ASGI callable returned without completing response"))


def make_server(
    app: ASGIApp,
    *,
    protocol: Callable[..., HttpProtocol] = HttpProtocol,
    on_stop: Callable[[], None] | None = None,
    trusted_proxies: str = "",
    tick_s: float = TICK_S,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
    tls: ssl.SSLContext | None = None,
) -> Server:
    """`trusted_proxies` are the addresses and networks, comma-separated, whose X-Forwarded-* headers are believed.

    `tick_s` is how exact the protocol's times are; `drain_timeout_s` is how long what is running when the server is
    told to end may take, before it is broken off.
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
        timeout_graceful_shutdown=cast(int, drain_timeout_s),  # any number will do
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
