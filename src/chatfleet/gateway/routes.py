"""The gateway's paths, as far as they are not the data plane's."""

from fastapi import APIRouter
from starlette.responses import Response

from chatfleet.gateway.endpoints import ENDPOINTS, Endpoint
from chatfleet.gateway.models import ModelNames
from chatfleet.http.openapi import ERROR_RESPONSES, body_of
from chatfleet.observability.asgi import add_metrics_route
from chatfleet.observability.exposition import Source
from chatfleet.protocol.common import ModelCard, ModelList


def make_router(names: ModelNames, metrics: Source) -> APIRouter:
    router = APIRouter(responses=ERROR_RESPONSES)
    for endpoint in ENDPOINTS:
        for path in (endpoint.path, *endpoint.aliases):
            _describe(router, endpoint, path)

    @router.get("/v1/models", tags=["Models"])
    async def models() -> ModelList:
        return ModelList(object="list", data=names.cards())

    @router.get("/v1/models/{model:path}", tags=["Models"])
    async def model(model: str) -> ModelCard:
        return names.card(model)

    @router.head("/health", include_in_schema=False)
    @router.get("/health", tags=["State"])
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready", tags=["State"])
    async def ready() -> dict[str, str]:
        """At least one model can be asked."""
        names.require_models()
        return {"status": "ok"}

    add_metrics_route(router, metrics)
    return router


def _describe(router: APIRouter, endpoint: Endpoint, path: str) -> None:
    """Make /docs and other methods' 405 know of a path whose POSTs the data plane takes before they get here."""

    async def unreachable() -> Response:
        raise AssertionError(f"POST {path} has passed the data plane")

    name = endpoint.path.removeprefix("/v1/").replace("/", "_")
    router.add_api_route(
        path,
        unreachable,
        methods=["POST"],
        name=name if path == endpoint.path else f"{name}_alias",
        tags=["Inference"],
        summary=endpoint.summary if path == endpoint.path else f"{endpoint.summary} (the same as {endpoint.path})",
        response_model=endpoint.response,
        openapi_extra=body_of(endpoint.request),
    )
