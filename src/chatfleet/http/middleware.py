"""What every request gets: an id, the names of ignored fields, and an error object whatever goes wrong."""

import asyncio
import random
import re
from collections.abc import Iterable

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatfleet.core.errors import ShuttingDown
from chatfleet.http.errors import as_serving_error, error_response

REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
"""What a client may call its request."""

_random = random.Random()
_MAX_IGNORED_CHARS = 1024


class RequestIds:
    """Gives every request an id and every response the headers of the request's state. Outermost.

    A client's own x-request-id is kept where it is short and plain, else one is made. Pure ASGI, as all of these, so
    that streams are not wrapped.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if ignored := state.get("ignored"):
                    headers["x-chatfleet-ignored"] = ignored_value(ignored)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class ErrorAnswers:
    """Answers what is raised inside with the one error form, while there is no answer yet.

    A request that the server's end cancels is answered too, and is no error of the server's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            if not started:
                await error_response(ShuttingDown())(scope, receive, send)
        except Exception as exc:
            error = as_serving_error(exc)
            if started:
                raise
            await error_response(error)(scope, receive, send)


def handle_requests(app: Starlette) -> None:
    """Ids and errors for all of `app`. To be called after the middleware that is to lie inside."""
    app.add_middleware(ErrorAnswers)
    app.add_middleware(RequestIds)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return new_request_id().decode()


def new_request_id() -> bytes:
    """Unique, and no secret."""
    return b"req_%032x" % _random.getrandbits(128)


def ignored_value(names: Iterable[str]) -> str:
    """Names as one header value: printable ASCII without commas of their own. Where there is no room for more, it ends
    with `...`."""
    value = ""
    for name in names:
        shown = re.sub(r"[^\x21-\x2b\x2d-\x7e]", "?", name[: _MAX_IGNORED_CHARS + 1]) or "?"
        longer = f"{value}, {shown}" if value else shown
        if len(longer) > _MAX_IGNORED_CHARS:
            return f"{value}, ..." if value else "..."
        value = longer
    return value
