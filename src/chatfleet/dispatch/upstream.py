"""How a request gets to a worker: one small interface, and aiohttp behind it."""

import socket
from collections.abc import Mapping
from typing import Final, Protocol

import aiohttp

from chatfleet.core.errors import WorkerFailed, WorkerUnreachable
from chatfleet.http.control import AnswerTooLarge, read_bounded

CONNECT_TIMEOUT_S: Final = 5.0
POOL_IDLE_S: Final = 4.0
"""How long an unused connection is kept. Servers on uvicorn's defaults close theirs after 5 s."""

MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024

Headers = Mapping[str, str]


class UpstreamResponse(Protocol):
    """A worker's answer whose head has come. Everything raises WorkerFailed when the worker breaks off."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Headers:
        """Names in any case."""

    async def read_some(self) -> bytes:
        """What has come, at least a byte; empty at the end. Cancelling it loses nothing."""

    async def read_all(self) -> bytes:
        """The whole body, of at most MAX_ANSWER_BYTES."""

    def close(self) -> None:
        """Drop the connection unless the answer was read to its end. Idempotent."""


class Upstream(Protocol):
    """Sends requests to workers over pooled connections."""

    async def post(self, url: str, body: bytes, headers: Headers) -> UpstreamResponse:
        """The answer's head. Raises WorkerFailed, and WorkerUnreachable where nothing was sent. Cancelling drops the
        connection."""


class AiohttpUpstream:
    """An Upstream on one aiohttp session, which is the caller's."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @staticmethod
    def new_session() -> aiohttp.ClientSession:
        """Without bounds on connections: what may run is bounded by workers, not by the pool. TCP_NODELAY is
        aiohttp's default."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=POOL_IDLE_S, socket_factory=_new_socket),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "accept-encoding", "user-agent"),
            auto_decompress=False,
            trust_env=False,
        )

    async def post(self, url: str, body: bytes, headers: Headers) -> UpstreamResponse:
        try:
            response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as exc:
            raise _failed(exc) from exc
        return _AiohttpResponse(response)


class _AiohttpResponse:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Headers = response.headers

    async def read_some(self) -> bytes:
        try:
            return await self._response.content.readany()
        except aiohttp.ClientError as exc:
            raise _failed(exc) from exc

    async def read_all(self) -> bytes:
        try:
            return await read_bounded(self._response, MAX_ANSWER_BYTES)
        except AnswerTooLarge as exc:
            raise WorkerFailed(f"The worker's answer is larger than {MAX_ANSWER_BYTES // 2**20} MB.") from exc
        except aiohttp.ClientError as exc:
            raise _failed(exc) from exc

    def close(self) -> None:
        self._response.close()


def _failed(error: Exception) -> WorkerFailed:
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return WorkerUnreachable(
            "The model's worker could not be reached. Try again; if it stays, it will be left out."
        )
    return WorkerFailed("The model's worker broke off before its answer was complete. Try again.")


def _new_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """One that notices a host which has gone without a word, in about 30 s."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # macOS calls some of them otherwise
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    made.setblocking(False)
    return made
