"""Whole answers as bytes, for what is answered below ASGI."""

from functools import lru_cache
from http import HTTPStatus
from typing import Final

from uvicorn.server import ServerState

from chatfleet.core.errors import ServingError
from chatfleet.http.errors import error_json

STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}

CONNECTION_CLOSE: Final = b"connection: close\r\n"


def status_line(status: int) -> bytes:
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status


def date_line(server_state: ServerState) -> bytes:
    """The header line with the time (RFC 9110, 6.6.1), which uvicorn keeps, once a second anew."""
    return _lines(tuple(server_state.default_headers))


@lru_cache(maxsize=4)
def _lines(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def error_answer(error: ServingError, request_id: bytes, *, keep_alive: bool, more: bytes = b"") -> bytes:
    """A whole answer in the one error form. `more` are header lines, each with its end."""
    body = error_json(error)
    headers = b"".join(
        b"%b: %b\r\n" % (name.encode(), value.encode("latin-1")) for name, value in error.headers.items()
    )
    return b"%bcontent-type: application/json\r\n%bx-request-id: %b\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
        status_line(error.status),
        headers,
        request_id,
        more,
        b"" if keep_alive else CONNECTION_CLOSE,
        len(body),
        body,
    )
