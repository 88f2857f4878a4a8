"""Reading request bodies: bounded in size, depth and time."""

import asyncio
import re
from collections.abc import Collection
from itertools import islice
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from chatfleet.core.errors import (
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
    UnknownParameter,
    UnsupportedMediaType,
)
from chatfleet.http.errors import invalid_request
from chatfleet.protocol.common import RequestModel

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_DEPTH = 64
BODY_TIMEOUT_S = 60.0
_JSON = "application/json"
OFF_LOOP_BYTES = 256 * 1024  # parsing this much takes over a millisecond

_MAX_UNKNOWN_FIELDS = 256  # as many as are named to the client

# Opening brackets, closing brackets, or texts with what lies between them. Possessive, and a text that does not
# end matches too: whatever the body is, the time is linear and no match is kept.
_NESTING = re.compile(rb'([\[{]++)|([\]}]++)|(?:"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)[^"\[\]{}]*+)++', re.DOTALL)

Model = TypeVar("Model", bound=RequestModel)
AnyModel = TypeVar("AnyModel", bound=BaseModel)


def check_media_type(content_type: str, content_encoding: str) -> None:
    """Raises UnsupportedMediaType unless it is plain JSON that is sent. Empty stands for a header that is not there."""
    if content_encoding.lower() not in ("", "identity"):
        raise UnsupportedMediaType("Compressed request bodies are not accepted. Send the JSON as it is.")
    require_json(content_type)


def require_json(content_type: str) -> None:
    """Raises UnsupportedMediaType unless the content type says JSON.

    None at all is refused too: a web page of another site may send a body without one, and no preflight asks first.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != _JSON:
        raise UnsupportedMediaType(f"The content-type is {media_type[:128]!r}. Send JSON as '{_JSON}'.")


async def read_body(request: Request) -> bytes:
    """The whole body of a JSON request.

    Raises PayloadTooLarge, RequestTimeout, UnsupportedMediaType; starlette's ClientDisconnect.
    """
    check_media_type(request.headers.get("content-type", ""), request.headers.get("content-encoding", ""))
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise too_large()
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise too_large()
                chunks.append(chunk)
    except TimeoutError as exc:
        raise RequestTimeout(f"The request body did not arrive within {BODY_TIMEOUT_S:.0f} s.") from exc
    return b"".join(chunks)


def too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than {MAX_BODY_BYTES // 2**20} MB.")


def is_too_deep(body: bytes) -> bool:
    """Whether JSON nests more than MAX_DEPTH levels: the brackets outside of texts, counted."""
    depth = 0
    for match in _NESTING.finditer(body):
        if match.lastindex == 1:
            depth += match.end() - match.start()
            if depth > MAX_DEPTH:
                return True
        elif match.lastindex == 2:
            depth -= match.end() - match.start()
    return False


def check_depth(body: bytes) -> None:
    """Raises InvalidRequest when the body nests too deep."""
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and is_too_deep(body):
        raise InvalidRequest(f"The request body nests deeper than {MAX_DEPTH} levels.")


def validate_body(model: type[AnyModel], body: bytes) -> AnyModel:
    """The body as `model`. Raises InvalidRequest with the field's path."""
    check_depth(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as exc:
        try:
            parsed = from_json(body)
        except ValueError as not_json:
            raise InvalidRequest(f"The request body is not valid JSON: {not_json}.") from exc
        raise invalid_request(exc, parsed) from exc


def _validated(model: type[Model], body: bytes) -> tuple[Model, list[str]]:
    parsed = validate_body(model, body)
    return parsed, list(islice(parsed.unknown_fields(), _MAX_UNKNOWN_FIELDS))


async def parse_body(
    request: Request, body: bytes, model: type[Model], *, strict: bool, internal: Collection[str] = ()
) -> Model:
    """The body of `request` as `model`. Fields nobody knows are left in `request.state.ignored`, or refused under
    `strict`; those that are `internal` are refused at any rate."""
    if len(body) > OFF_LOOP_BYTES:
        parsed, unknown = await asyncio.to_thread(_validated, model, body)
    else:
        parsed, unknown = _validated(model, body)
    for name in internal:
        if name in (parsed.model_extra or ()):
            raise InvalidRequest(
                f"'{name}' is internal: the parts of a fleet say it to each other, and clients may not. Leave it out.",
                param=name,
            )
    if unknown and strict:
        raise UnknownParameter(f"Unknown parameter: '{unknown[0]}'.", param=unknown[0])
    request.state.ignored = unknown
    return parsed
