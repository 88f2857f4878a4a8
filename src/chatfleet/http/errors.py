"""The one place where errors become responses."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from chatfleet.core.errors import (
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    PathNotFound,
    ServingError,
)
from chatfleet.protocol.common import ErrorBody, ErrorResponse

logger = logging.getLogger(__name__)


def error_json(error: ServingError) -> bytes:
    """OpenAI's error object: what a failed response and a failed stream's last event carry."""
    return ErrorResponse(
        error=ErrorBody(message=error.message, type=error.type, param=error.param, code=error.code)
    ).to_json()


def error_response(error: ServingError) -> Response:
    return Response(error_json(error), error.status, error.headers, media_type="application/json")


def as_serving_error(error: BaseException) -> ServingError:
    """Any exception as one that a client may see; what is not ours is logged and hidden."""
    if isinstance(error, ServingError):
        return error
    logger.error("unexpected error", exc_info=error)
    return InternalError("The server had an internal error. Its log has the details.")


def invalid_request(error: ValidationError, body: object) -> InvalidRequest:
    """One of pydantic's complaints as OpenAI words it: `param` is the path of the field in `body`.

    Where a union was tried branch by branch, the one that the client's value meant is the complaint about something
    of the right type, else that of the branch that got furthest.
    """
    complaints = error.errors(include_url=False, include_context=False)
    steps, complaint = max(
        ((_steps(complaint, body), complaint) for complaint in complaints),
        key=lambda found: (
            not found[1]["type"].endswith("_type"),
            len(found[0]),
            [step for step in found[0] if isinstance(step, int)],
        ),
    )
    param = _render(steps)
    message = complaint["msg"].removeprefix("Value error, ")
    if not param:
        return InvalidRequest(f"The request body is not valid: {message}.")
    return InvalidRequest(f"Invalid value for '{param}': {message}.", param=param)


def _steps(complaint: Any, body: object) -> list[str | int]:
    """The complaint's location without pydantic's names of union branches: only what leads through `body`."""
    steps: list[str | int] = []
    value: Any = body
    for step in complaint["loc"]:
        if isinstance(value, dict) and step in value or isinstance(value, list) and isinstance(step, int):
            steps.append(step)
            value = value[step]
    if complaint["type"] == "missing":
        steps.append(complaint["loc"][-1])
    return steps


def _render(steps: Sequence[str | int]) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return path.removeprefix(".")


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of `app`, 404 and 405 included, OpenAI's error object."""

    async def serving_error(_request: Request, error: Exception) -> Response:
        return error_response(as_serving_error(error))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        target = f"{request.method} {request.url.path}"
        if error.status_code == 404:
            hint = "" if request.app.openapi_url is None else " See /docs for what is served."
            return error_response(PathNotFound(f"Unknown request URL: {target}.{hint}"))
        if error.status_code == 405:
            allowed = dict(error.headers or {})
            return error_response(
                MethodNotAllowed(
                    f"Not allowed: {target}. Use {allowed.get('Allow', 'another method')}.", headers=allowed
                )
            )
        return error_response(InvalidRequest(str(error.detail)))

    app.add_exception_handler(ServingError, serving_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, serving_error)
