"""CORS as the settings want it, its refusals in the one error form."""

from contextlib import suppress
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message

from chatfleet.core.errors import InvalidRequest
from chatfleet.gateway.settings import EndpointSettings
from chatfleet.http.errors import error_response

_EXPOSED = (
    "x-request-id",
    "x-chatfleet-ignored",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "idempotent-replayed",
)
_PREFLIGHT_AGE_S = 600


class Cors(CORSMiddleware):
    """Starlette's, set up."""

    def __init__(self, app: ASGIApp, settings: EndpointSettings) -> None:
        super().__init__(
            app,
            allow_origins=settings.allowed_origins,
            allow_methods=settings.allowed_methods,
            allow_headers=settings.allowed_headers,
            allow_credentials=settings.allow_credentials,
            expose_headers=_EXPOSED,
            max_age=_PREFLIGHT_AGE_S,
        )

        self._header_lines = lru_cache(maxsize=256)(self._make_header_lines)

    def header_lines(self, origin: bytes | None, has_cookie: bool) -> bytes:
        """What an answer says to pages of `origin`, as header lines each with its end."""
        return self._header_lines(origin, has_cookie)

    def _make_header_lines(self, origin: bytes | None, has_cookie: bool) -> bytes:
        given = [(b"origin", origin)] if origin is not None else []
        message: Message = {"type": "http.response.start", "headers": []}
        adding = self.send(message, _drop, Headers(raw=[*given, *([(b"cookie", b"")] if has_cookie else [])]))
        with suppress(StopIteration):
            adding.send(None)  # it waits for nothing
        return b"".join(b"%b: %b\r\n" % header for header in message["headers"])

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        reason = bytes(response.body).decode()
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return error_response(InvalidRequest(f"{reason}. See --allowed-origins and its like.", headers=headers))


async def _drop(_message: Message) -> None:
    pass
