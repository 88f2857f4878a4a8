"""The API's description, as /docs shows it. Our handlers parse bodies themselves, so FastAPI must be told of them."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema

from chatfleet import __version__
from chatfleet.protocol.chat import ChatCompletionRequest
from chatfleet.protocol.common import ErrorResponse, RequestModel
from chatfleet.protocol.completions import CompletionRequest
from chatfleet.protocol.embeddings import EmbeddingRequest
from chatfleet.protocol.tokenize import DetokenizeRequest, TokenizeRequest

REQUEST_MODELS: Final[tuple[type[RequestModel], ...]] = (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    TokenizeRequest,
    DetokenizeRequest,
)

ERROR_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": ErrorResponse},
    404: {"model": ErrorResponse},
    503: {"model": ErrorResponse},
}


_DESCRIPTION: Final = "OpenAI's API: any OpenAI client works with it. Errors are OpenAI's error objects."


def documented_app(title: str, *, with_keys: bool) -> FastAPI:
    """An app whose /docs works without the internet, and describes the request bodies that `body_of` names and, where
    it has them, the bearer keys."""
    app = FastAPIOffline(
        title=title, description=_DESCRIPTION, version=__version__, redirect_slashes=False, redoc_url=None
    )
    app.openapi = lambda: _openapi(app, with_keys)  # type: ignore[method-assign]
    return app


def body_of(model: type[RequestModel]) -> dict[str, Any]:
    """A route's `openapi_extra` for a request body of one of `REQUEST_MODELS`."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _openapi(app: FastAPI, with_keys: bool) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, definitions = models_json_schema(
            [(model, "validation") for model in REQUEST_MODELS], ref_template="#/components/schemas/{model}"
        )
        schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        if with_keys:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
