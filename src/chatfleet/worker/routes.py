"""The worker's paths. Each handler reads, hands over and answers; what happens is in the service."""

import re
from collections.abc import Collection, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from chatfleet.chat.text import decode
from chatfleet.core.errors import EngineUnavailable, InvalidRequest
from chatfleet.core.fleet import PRIORITY_HEADER, RECOVERY_HEADER, RECOVERY_IDS, RECOVERY_RESUME
from chatfleet.http.body import Model, parse_body, read_body
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
from chatfleet.worker.recovery import RESUME_FIELD, Terms, parse_resume_body
from chatfleet.worker.sampling import check_prompt_vocabulary
from chatfleet.worker.service import WorkerService, off_loop

Generating = TypeVar("Generating", ChatCompletionRequest, CompletionRequest)

_PRIORITY: Final = re.compile(r"[+-]?[0-9]{1,9}")


def make_router(service: WorkerService, *, strict: bool) -> APIRouter:
    """Every path of a worker. `strict` refuses request fields that nobody knows."""
    router = APIRouter(responses=ERROR_RESPONSES)

    async def parse(request: Request, model: type[Model]) -> Model:
        return await parse_bytes(request, await read_body(request), model)

    async def parse_bytes(
        request: Request, body: bytes, model: type[Model], *, internal: Collection[str] = ()
    ) -> Model:
        parsed = await parse_body(request, body, model, strict=strict, internal=internal)
        requested: str | None = getattr(parsed, "model", None)
        if requested is None or requested in service.model.names:
            setattr(request.state, MODEL_STATE, service.metrics.model_name)
        require_ready()
        return parsed

    async def parse_generation(request: Request, model: type[Generating]) -> tuple[Generating, Terms]:
        """A request for text, and what its gateway asks for beside it."""
        recovery = request.headers.get(RECOVERY_HEADER)
        if recovery == RECOVERY_RESUME and not service.is_in_fleet:
            raise InvalidRequest(
                f"'{RECOVERY_HEADER}: {RECOVERY_RESUME}' is for the gateways of a fleet, and this worker belongs to "
                "none. Leave the header out, or start the worker with --controller-url."
            )
        body = await read_body(request)
        resume = None
        if recovery == RECOVERY_RESUME:
            resume, body = await off_loop(len(body), partial(parse_resume_body, body))
        parsed = await parse_bytes(request, body, model, internal=(RESUME_FIELD,))
        if resume is not None and not parsed.stream:
            raise InvalidRequest("Only a stream can be gone on with.", param="stream")
        return parsed, Terms(
            priority=_priority(request.headers.get(PRIORITY_HEADER)) if service.is_in_fleet else 0,
            recoverable=recovery in (RECOVERY_IDS, RECOVERY_RESUME),
            resume=resume,
        )

    def require_ready() -> None:
        if not service.engine.ready:
            raise EngineUnavailable("The model is loading or its engine is restarting. Try again shortly.")

    async def respond(
        request: Request, stream: bool | None, call: ChatCompletions | Completions, terms: Terms
    ) -> Response:
        if stream:
            events = MeteredEvents(call.stream(), call.meter.numbers)
            return await EventStreamResponse.open(request.receive, events, can_be_continued=terms.recoverable)
        return await json_response(request, call.whole())

    @router.post("/v1/chat/completions", response_model=ChatCompletion, openapi_extra=body_of(ChatCompletionRequest))
    async def chat_completions(request: Request) -> Response:
        body, terms = await parse_generation(request, ChatCompletionRequest)
        return await respond(request, body.stream, ChatCompletions(service, body, terms), terms)

    @router.post("/v1/completions", response_model=Completion, openapi_extra=body_of(CompletionRequest))
    async def completions(request: Request) -> Response:
        body, terms = await parse_generation(request, CompletionRequest)
        return await respond(request, body.stream, Completions(service, body, terms), terms)

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


def _priority(value: str | None) -> int:
    """What is no integer is none: the header is a wish, and not of the client."""
    return int(value) if value is not None and _PRIORITY.fullmatch(value) else 0


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
