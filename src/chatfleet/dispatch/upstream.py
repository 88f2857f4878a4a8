"""Connections to workers: made when needed, kept for the next request."""

import asyncio
import socket
import ssl
import time
from itertools import takewhile
from typing import Final
from urllib.parse import urlsplit

from chatfleet.core.errors import ConnectTimeout, WorkerUnreachable
from chatfleet.dispatch.connection import WorkerConnection

CONNECT_TIMEOUT_S: Final = 5.0
UNIX: Final = "unix:"
"""What the URL of a socket begins with that is a file; its path follows as it is."""

POOL_IDLE_S: Final = 30.0
"""How long an unused connection is kept. A worker that closes it earlier does no harm."""


class Pool:
    """The connections to one worker. What is said to it runs on the event loop that it is used on."""

    def __init__(self, upstream: "Upstream", url: str) -> None:
        parts = urlsplit(url)
        self._upstream = upstream
        self._url = url
        self._path = url.removeprefix(UNIX) if url.startswith(UNIX) else None
        self._host = parts.hostname or ""
        self._is_tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._idle: dict[WorkerConnection, None] = {}  # the last used is used next, so that the others can go
        self._size = self._connecting = 0

    def idle(self) -> WorkerConnection | None:
        """A connection to use at once, if there is one."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_usable:
                return connection
        return None

    async def connect(self) -> WorkerConnection:
        """A new connection. Raises WorkerUnreachable. Cancelling it leaves none."""
        self._connecting += 1
        try:
            async with asyncio.timeout(self._upstream.connect_timeout_s):
                connection = await self._connect()
        except TimeoutError as exc:
            raise ConnectTimeout(
                f"The model's worker could not be reached within {self._upstream.connect_timeout_s:g} s."
            ) from exc
        except (OSError, UnicodeError) as exc:  # SSLError is an OSError
            raise _unreachable() from exc
        finally:
            self._connecting -= 1
        if not connection.is_usable:
            raise _unreachable()
        return connection

    async def _connect(self) -> WorkerConnection:
        loop = asyncio.get_running_loop()
        if self._path is not None:
            return (await loop.create_unix_connection(lambda: WorkerConnection(self), self._path))[1]
        transport, connection = await loop.create_connection(
            lambda: WorkerConnection(self),
            self._host,
            self._port,
            ssl=self._upstream.tls if self._is_tls else None,
        )
        _watch_for_silence(transport.get_extra_info("socket"))
        return connection

    def made(self, connection: WorkerConnection) -> None:
        self._size += 1
        self._upstream.connections += 1

    def take_back(self, connection: WorkerConnection) -> None:
        connection.idle_since = time.monotonic()
        self._idle[connection] = None

    def forget(self, connection: WorkerConnection) -> None:
        self._size -= 1
        self._upstream.connections -= 1
        self._idle.pop(connection, None)

    def close_idle(self, before: float) -> None:
        """Close what has been unused since `before`."""
        for connection in list(takewhile(lambda connection: connection.idle_since < before, self._idle)):
            del self._idle[connection]
            connection.abandon()

    @property
    def is_empty(self) -> bool:
        return not (self._size or self._connecting)


class Upstream:
    """A pool of connections for every worker. `connections` is how many there are, in use or not; `tls` is how the
    certificates of those with https are checked."""

    def __init__(self, tls: ssl.SSLContext, *, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self._pools: dict[str, Pool] = {}
        self.tls = tls
        self.connect_timeout_s = connect_timeout_s
        self.connections = 0

    def pool(self, url: str) -> Pool:
        """The pool of the worker at `url`."""
        pool = self._pools.get(url)
        if pool is None:
            pool = self._pools[url] = Pool(self, url)
        return pool

    def close_idle(self, unused_s: float = POOL_IDLE_S) -> None:
        """Close what has not been used for `unused_s`, and let go of the pools of workers that have gone."""
        before = time.monotonic() - unused_s
        for pool in self._pools.values():
            pool.close_idle(before)
        self._pools = {url: pool for url, pool in self._pools.items() if not pool.is_empty}


def _unreachable() -> WorkerUnreachable:
    return WorkerUnreachable("The model's worker could not be reached. Try again; if it stays, it will be left out.")


def _watch_for_silence(connected: socket.socket) -> None:
    """Notice a host that has gone without a word, in about 30 s."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    times = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000))
    for name, value in times:
        if hasattr(socket, name):  # macOS calls some of them otherwise
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
