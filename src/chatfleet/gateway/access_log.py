"""A line per request: who, what, how it went, how long it took. No contents and no keys."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("chatfleet.access")


class AccessLog:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 499  # nginx's for a client that left before the answer began

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        finally:
            client = scope["client"][0] if scope["client"] else "-"
            duration_s = time.perf_counter() - started
            path = ascii(scope["path"])[1:-1][:256]  # one line, whatever was sent
            request_id = scope.get("state", {}).get("request_id", "-")
            logger.info("%s %s %s %d %.3fs %s", client, scope["method"], path, status, duration_s, request_id)
