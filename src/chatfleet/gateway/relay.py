"""A request on its way through the gateway, step by step."""

import random
import time
from collections.abc import Mapping, Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from chatfleet import __version__
from chatfleet.core.errors import LoopDetected, WorkerFailed, WorkerUnreachable
from chatfleet.core.fleet import WorkerInfo
from chatfleet.dispatch.events import KEEP_ALIVE
from chatfleet.dispatch.exchange import Exchange, is_event_stream, media_type
from chatfleet.dispatch.policy import least_loaded
from chatfleet.dispatch.upstream import Upstream
from chatfleet.dispatch.view import FleetView, Worker
from chatfleet.gateway.models import ModelNames
from chatfleet.gateway.requests import RoutingFields, build_parameters, read_routing
from chatfleet.http.body import read_body
from chatfleet.http.control import bearer
from chatfleet.http.streaming import EventStreamResponse, until_disconnect

TO_WORKER: Final = ("traceparent", "tracestate")
"""The headers of a client that reach a worker; all others are the gateway's own."""

HOPS: Final = "x-chatfleet-hops"
"""How many gateways a request has come through: one may be the worker of another, and by mistake of itself."""

MAX_HOPS: Final = 8

_JSON: Final = "application/json"


class Relay:
    """Takes requests to workers and their answers back. `token` is what our own workers know the gateway by."""

    def __init__(
        self, names: ModelNames, view: FleetView, upstream: Upstream, *, token: str | None, keep_alive_s: float
    ) -> None:
        self._names = names
        self._view = view
        self._upstream = upstream
        self._token = token
        self._keep_alive_s = keep_alive_s
        self._rng = random.Random()

    async def relay(self, request: Request, path: str, *, streams: bool) -> Response:
        """The answer of a worker's `path` to a request with a JSON body: a stream if that `streams` and was asked to.

        Raises ServingError, and ClientDisconnect. Whether the prompt fits the context is for the worker to say, which
        has the tokenizer; it says so before its first event, so the client gets a real status.
        """
        body = await read_body(request)
        routing = await read_routing(body)
        model = self._model_known(routing)
        unreachable: list[Worker] = []
        while True:
            worker = self._worker_chosen(model, unreachable)
            parameters = self._parameters_built(request, body, worker.info, routing, model)
            exchange = Exchange(self._upstream, worker, keep_alive_s=self._keep_alive_s)
            try:
                self._forwarded(request, exchange, worker.info, path, parameters)
                return await self._answered(request, exchange, is_stream=streams and bool(routing.stream))
            except WorkerUnreachable:
                await exchange.aclose()
                unreachable.append(worker)
                if not self._others(model, unreachable):
                    raise
            except BaseException:
                await exchange.aclose()
                raise

    def _model_known(self, routing: RoutingFields) -> str:
        return self._names.resolve(routing.model)

    def _worker_chosen(self, model: str, unreachable: Sequence[Worker]) -> Worker:
        return least_loaded(self._others(model, unreachable), time.monotonic(), self._rng)

    def _others(self, model: str, unreachable: Sequence[Worker]) -> list[Worker]:
        return [worker for worker in self._view.workers_of(model) if worker not in unreachable]

    def _parameters_built(
        self, request: Request, body: bytes, worker: WorkerInfo, routing: RoutingFields, model: str
    ) -> bytes:
        parameters, dropped = build_parameters(body, worker, routing.model, model)
        request.state.ignored = dropped
        return parameters

    def _forwarded(
        self, request: Request, exchange: Exchange, worker: WorkerInfo, path: str, parameters: bytes
    ) -> None:
        exchange.send(path, parameters, self._headers_for(worker, request.headers, request.state.request_id))

    def _headers_for(self, worker: WorkerInfo, given: Mapping[str, str], request_id: str) -> dict[str, str]:
        """Raises LoopDetected."""
        hops = _hops(given)
        if hops >= MAX_HOPS:
            raise LoopDetected(
                f"The request has come through {hops} gateways. One of them is probably registered as a server of its "
                "own fleet: see `chatfleet status`."
            )
        return {
            **{name: given[name] for name in TO_WORKER if name in given},
            **bearer(self._token if worker.kind == "chatfleet" else worker.api_key),
            "content-type": _JSON,
            "user-agent": f"chatfleet/{__version__}",
            "x-request-id": request_id,
            HOPS: str(hops + 1),
        }

    async def _answered(self, request: Request, exchange: Exchange, *, is_stream: bool) -> Response:
        answer = await until_disconnect(request.receive, exchange.answer_in_time() if is_stream else exchange.answer())
        if answer is None:  # a long prompt: comments, and then events or an error event, are all that can follow
            return EventStreamResponse(KEEP_ALIVE, exchange)
        if ignored := answer.headers.get("x-chatfleet-ignored"):
            request.state.ignored += [name.strip() for name in ignored.split(",")]
        if is_event_stream(answer):
            return await EventStreamResponse.open(request.receive, exchange)
        if media_type(answer) != _JSON:
            raise WorkerFailed("The model's worker did not answer as OpenAI's API does.")
        body = await until_disconnect(request.receive, exchange.whole())
        await exchange.aclose()
        return Response(body, media_type=_JSON)


def _hops(headers: Mapping[str, str]) -> int:
    given = headers.get(HOPS, "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 3 else 0
