"""The errors of workers as errors of ours."""

import logging
from typing import Any, Final

import msgspec

from chatfleet.core.errors import ServingError, WorkerFailed, WorkerRefused
from chatfleet.core.fleet import WorkerInfo
from chatfleet.dispatch.connection import Headers

logger = logging.getLogger(__name__)

PASSED_ON: Final = (b"retry-after", b"retry-after-ms", b"x-should-retry")
"""The headers of a worker's refusal that reach the client."""

_MAX_MESSAGE_CHARS: Final = 4096
_BETWEEN_US: Final = frozenset({401, 403, 407, 421})
"""Statuses that are about the gateway's standing with the worker, not about the client's request."""


def refusal(worker: WorkerInfo, status: int, body: bytes, headers: Headers) -> ServingError:
    """What a worker's answer other than 200 means for the client.

    Servers that are not ours send OpenAI's object with types of their own, a bare object, `detail`, or text.
    """
    if status in _BETWEEN_US:
        logger.error("the worker %s at %s refuses the gateway (status %d)", worker.worker_id, worker.url, status)
        return WorkerFailed("The model's worker does not accept this gateway. Its operator must check their tokens.")
    if not 400 <= status < 600:
        return WorkerFailed("The model's worker did not answer as OpenAI's API does.")
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = body.decode("utf-8", "replace")
    if isinstance(found, dict):
        found = found.get("error", found.get("detail", found))
    fields: dict[str, Any] = found if isinstance(found, dict) else {"message": found}
    own = {name.strip().lower() for name in headers.get(b"connection", b"").split(b",")}  # RFC 9110, 7.6.1
    kind, param, code = (fields.get(name) for name in ("type", "param", "code"))
    return WorkerRefused(
        str(fields.get("message") or fields)[:_MAX_MESSAGE_CHARS],
        status=status,
        type=kind if isinstance(kind, str) else "invalid_request_error" if status < 500 else "server_error",
        param=param if isinstance(param, str) else None,
        code=None if code is None else str(code),
        headers={name.decode(): headers[name].decode("latin-1") for name in PASSED_ON if name in headers.keys() - own},
    )
