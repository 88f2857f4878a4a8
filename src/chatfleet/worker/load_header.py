"""A worker's load in its answers, so that gateways know it sooner than by heartbeats."""

from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatfleet.core.fleet import LOAD_HEADER, WorkerLoad

_NAME: Final = LOAD_HEADER.encode()
_EVENT_STREAM: Final = b"text/event-stream"


class LoadHeader:
    """Gives every answer to a POST the worker's load in a LOAD_HEADER. Pure ASGI, so that streams are not wrapped.

    The load is that of the moment when the answer's head leaves. A stream is running then; a whole answer, and a
    refusal, hold no permit any more, and are added.
    """

    def __init__(self, app: ASGIApp, load: Callable[[], WorkerLoad]) -> None:
        self._app = app
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return

        async def send_with_load(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                load = self._load()
                if not any(name == b"content-type" and value.startswith(_EVENT_STREAM) for name, value in headers):
                    load = WorkerLoad(running=load.running + 1, waiting=load.waiting)
                message["headers"] = [*headers, (_NAME, load.to_header())]
            await send(message)

        await self._app(scope, receive, send_with_load)
