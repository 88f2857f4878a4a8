"""A line per request: who, what, how it went, how long it took. No contents and no keys."""

import logging
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import _TrustedHosts

from chatfleet.observability.requests import CLIENT_GONE

logger = logging.getLogger("chatfleet.access")


class AccessLines:
    """Writes them. `trusted_proxies` are the addresses and networks whose X-Forwarded-For is believed."""

    def __init__(self, trusted_proxies: Sequence[str]) -> None:
        self._trusted = _TrustedHosts(list(trusted_proxies)) if trusted_proxies else None

    def client(self, address: tuple[str, int] | None, forwarded_for: bytes | None) -> str:
        """Who asks."""
        host = address[0] if address else "-"
        if self._trusted is not None and forwarded_for and host in self._trusted:
            return self._trusted.get_trusted_client_address(forwarded_for.decode("latin-1"))[0]
        return host

    def write(self, client: str, method: str, path: str, status: int, duration_s: float, request_id: str) -> None:
        where = _plain(path.partition("?")[0], 256)
        logger.info("%s %s %s %d %.3fs %s", _plain(client, 64), method, where, status, duration_s, request_id)


def _plain(text: str, max_chars: int) -> str:
    """On one line, whatever was sent."""
    return ascii(text)[1:-1][:max_chars]


class AccessLog:
    """A line for every request of an application."""

    def __init__(self, app: ASGIApp, lines: AccessLines) -> None:
        self._app = app
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = CLIENT_GONE

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        finally:
            client = scope["client"][0] if scope["client"] else "-"  # uvicorn has looked at X-Forwarded-For
            request_id = scope.get("state", {}).get("request_id", "-")
            duration_s = time.perf_counter() - started
            self._lines.write(client, scope["method"], scope["path"], status, duration_s, request_id)
