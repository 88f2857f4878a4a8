"""Reading request bodies: bounded in size, depth and time."""

import asyncio
import re
from typing import TypeVar

from fastapi import Request
from pydantic import ValidationError
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
_OFF_LOOP_BYTES = 256 * 1024  # parsing this much takes over a millisecond

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")

Model = TypeVar("Model", bound=RequestModel)


async def read_body(request: Request) -> bytes:
    """The whole body. Raises PayloadTooLarge, RequestTimeout, UnsupportedMediaType; starlette's ClientDisconnect."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Compressed request bodies are not accepted. Send the JSON as it is.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise _too_large()
                chunks.append(chunk)
    except TimeoutError as exc:
        raise RequestTimeout(f"The request body did not arrive within {BODY_TIMEOUT_S:.0f} s.") from exc
    return b"".join(chunks)


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than {MAX_BODY_BYTES // 2**20} MB.")


def is_too_deep(body: bytes) -> bool:
    """Whether JSON nests more than MAX_DEPTH levels. Linear: innermost pairs are taken away level by level."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def validate_body(model: type[Model], body: bytes) -> Model:
    """The body as `model`. Raises InvalidRequest with the field's path."""
    if is_too_deep(body):
        raise InvalidRequest(f"The request body nests deeper than {MAX_DEPTH} levels, or its brackets do not match.")
    try:
        return model.model_validate_json(body)
    except ValidationError as exc:
        try:
            parsed = from_json(body)
        except ValueError as not_json:
            raise InvalidRequest(f"The request body is not valid JSON: {not_json}.") from exc
        raise invalid_request(exc, parsed) from exc


async def parse_body(request: Request, model: type[Model], *, strict: bool) -> Model:
    """Read and validate. Fields nobody knows are left in `request.state.ignored`, or refused under `strict`."""
    body = await read_body(request)
    if len(body) > _OFF_LOOP_BYTES:
        parsed = await asyncio.to_thread(validate_body, model, body)
    else:
        parsed = validate_body(model, body)
    unknown = list(parsed.unknown_fields())
    if unknown and strict:
        raise UnknownParameter(f"Unknown parameter: '{unknown[0]}'.", param=unknown[0])
    request.state.ignored = unknown
    return parsed
