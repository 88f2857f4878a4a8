"""The gateway's paths."""

from typing import Final, NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from chatfleet.gateway.models import ModelNames
from chatfleet.gateway.relay import Relay
from chatfleet.http.openapi import ERROR_RESPONSES, body_of
from chatfleet.protocol.chat import ChatCompletion, ChatCompletionRequest
from chatfleet.protocol.common import ModelCard, ModelList, RequestModel, WireModel
from chatfleet.protocol.completions import Completion, CompletionRequest
from chatfleet.protocol.embeddings import EmbeddingRequest, EmbeddingResponse
from chatfleet.protocol.tokenize import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse


class Endpoint(NamedTuple):
    """A path that workers answer, streaming if `streams` and asked to; `aliases` are other paths for the same."""

    path: str
    summary: str
    request: type[RequestModel]
    response: type[WireModel]
    streams: bool = False
    aliases: tuple[str, ...] = ()


ENDPOINTS: Final = (
    Endpoint(
        "/v1/chat/completions",
        "Answer a conversation",
        ChatCompletionRequest,
        ChatCompletion,
        streams=True,
        aliases=("/",),
    ),
    Endpoint("/v1/completions", "Continue a text", CompletionRequest, Completion, streams=True),
    Endpoint("/v1/embeddings", "Embed texts", EmbeddingRequest, EmbeddingResponse),
    Endpoint("/v1/tokenize", "Turn text into tokens", TokenizeRequest, TokenizeResponse),
    Endpoint("/v1/detokenize", "Turn tokens into text", DetokenizeRequest, DetokenizeResponse),
)


def make_router(names: ModelNames, relay: Relay) -> APIRouter:
    router = APIRouter(responses=ERROR_RESPONSES)

    def add(endpoint: Endpoint, path: str) -> None:
        async def answer(request: Request) -> Response:
            return await relay.relay(request, endpoint.path, streams=endpoint.streams)

        name = endpoint.path.removeprefix("/v1/").replace("/", "_")
        router.add_api_route(
            path,
            answer,
            methods=["POST"],
            name=name if path == endpoint.path else f"{name}_alias",
            tags=["Inference"],
            summary=endpoint.summary if path == endpoint.path else f"{endpoint.summary} (the same as {endpoint.path})",
            response_model=endpoint.response,
            openapi_extra=body_of(endpoint.request),
        )

    for endpoint in ENDPOINTS:
        for path in (endpoint.path, *endpoint.aliases):
            add(endpoint, path)

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

    return router
