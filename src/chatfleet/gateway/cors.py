"""CORS as the settings want it, its refusals in the one error form."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from chatfleet.core.errors import InvalidRequest
from chatfleet.gateway.settings import EndpointSettings
from chatfleet.http.errors import error_response

_EXPOSED = ("x-request-id", "x-chatfleet-ignored", "retry-after", "retry-after-ms", "x-should-retry")
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

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        reason = bytes(response.body).decode()
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return error_response(InvalidRequest(f"{reason}. See --allowed-origins and its like.", headers=headers))
