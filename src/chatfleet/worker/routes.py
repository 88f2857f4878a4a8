"""The worker's paths. Each handler reads, hands over and answers; what happens is in the service."""

from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from chatfleet.chat.text import decode
from chatfleet.core.errors import EngineUnavailable
from chatfleet.http.body import Model, parse_body
from chatfleet.http.openapi import ERROR_RESPONSES, body_of
from chatfleet.http.streaming import EventStreamResponse, until_disconnect
from chatfleet.observability.asgi import MODEL_STATE, add_metrics_route
from chatfleet.protocol.chat import ChatCompletion, ChatCompletionRequest
from chatfleet.protocol.common import ModelCard, ModelList, WireModel
from chatfleet.protocol.completions import Completion, CompletionRequest
from chatfleet.protocol.embeddings import EmbeddingRequest, EmbeddingResponse
from chatfleet.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from chatfleet.worker.chat import ChatCompletions
from chatfleet.worker.completions import Completions
from chatfleet.worker.embeddings import create_embeddings
from chatfleet.worker.metrics import MeteredEvents
from chatfleet.worker.sampling import check_prompt_vocabulary
from chatfleet.worker.service import WorkerService, off_loop


def make_router(service: WorkerService, *, strict: bool) -> APIRouter:
    """Every path of a worker. `strict` refuses request fields that nobody knows."""
    router = APIRouter(responses=ERROR_RESPONSES)

    async def parse(request: Request, model: type[Model]) -> Model:
        parsed = await parse_body(request, model, strict=strict)
        requested: str | None = getattr(parsed, "model", None)
        if requested is None or requested in service.model.names:
            setattr(request.state, MODEL_STATE, service.metrics.model_name)
        require_ready()
        return parsed

    def require_ready() -> None:
        if not service.engine.ready:
            raise EngineUnavailable("The model is loading or its engine is restarting. Try again shortly.")

    async def respond(request: Request, stream: bool | None, call: ChatCompletions | Completions) -> Response:
        if stream:
            return await EventStreamResponse.open(request.receive, MeteredEvents(call.stream(), call.meter.numbers))
        return await json_response(request, call.whole())

    @router.post("/v1/chat/completions", response_model=ChatCompletion, openapi_extra=body_of(ChatCompletionRequest))
    async def chat_completions(request: Request) -> Response:
        body = await parse(request, ChatCompletionRequest)
        return await respond(request, body.stream, ChatCompletions(service, body))

    @router.post("/v1/completions", response_model=Completion, openapi_extra=body_of(CompletionRequest))
    async def completions(request: Request) -> Response:
        body = await parse(request, CompletionRequest)
        return await respond(request, body.stream, Completions(service, body))

    @router.post("/v1/embeddings", response_model=EmbeddingResponse, openapi_extra=body_of(EmbeddingRequest))
    async def embeddings(request: Request) -> Response:
        body = await parse(request, EmbeddingRequest)
        return await json_response(request, create_embeddings(service, body))

    @router.get("/v1/models", tags=["Models"])
    async def models() -> ModelList:
        return ModelList(object="list", data=service.model_cards())

    @router.get("/v1/models/{model:path}", tags=["Models"])
    async def model(model: str) -> ModelCard:
        name = service.model_name(model)
        return next(card for card in service.model_cards() if card.id == name)

    @router.post("/v1/tokenize", response_model=TokenizeResponse, openapi_extra=body_of(TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        body = await parse(request, TokenizeRequest)
        service.model_name(body.model)
        if body.messages is None:
            tokens = await service.encode(body.prompt or "", add_special_tokens=body.add_special_tokens)
        else:
            prompt = await service.render(body.messages, body.tools, add_generation_prompt=body.add_generation_prompt)
            tokens = await service.encode(prompt, add_special_tokens=False)
        return await off_loop(len(tokens), lambda: _json(_tokenized(service, tokens, body.return_token_strs)))

    @router.post("/v1/detokenize", response_model=DetokenizeResponse, openapi_extra=body_of(DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        body = await parse(request, DetokenizeRequest)
        service.model_name(body.model)
        check_prompt_vocabulary(body.tokens, "tokens", service.capabilities)
        text = await off_loop(len(body.tokens), lambda: decode(service.model.tokenizer, body.tokens))
        return _json(DetokenizeResponse(prompt=text))

    @router.head("/health", include_in_schema=False)
    @router.get("/health", tags=["State"])
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready", tags=["State"])
    async def ready() -> dict[str, str]:
        """Requests can be answered, and by which worker: another may have taken over its port."""
        require_ready()
        return {"status": "ok", "worker_id": service.worker_id}

    add_metrics_route(router, service.metrics)
    return router


async def json_response(request: Request, work: Coroutine[Any, Any, WireModel]) -> Response:
    """The answer of `work`, which ends when the client goes away."""
    return _json(await until_disconnect(request.receive, work))


def _tokenized(service: WorkerService, tokens: list[int], with_texts: bool) -> TokenizeResponse:
    response = TokenizeResponse(count=len(tokens), max_model_len=service.capabilities.context_length, tokens=tokens)
    if with_texts:
        token_bytes = service.model.tokenizer.token_bytes
        response.token_strs = [token_bytes(token).decode("utf-8", "replace") for token in tokens]
    return response


def _json(response: WireModel) -> Response:
    return Response(response.to_json(), media_type="application/json")
