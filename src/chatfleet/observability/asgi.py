"""Measuring a server's requests from outside, and the path by which Prometheus asks."""

import time
from collections.abc import Callable
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatfleet.observability.exposition import METRICS_PATH, Source, metrics_response
from chatfleet.observability.requests import CLIENT_GONE, RequestMetrics

MODEL_STATE: Final = "model_name"
"""Of a request's state: the model that it is for, once that is known to be served."""

_PROBES: Final = frozenset({"/health", "/ready", METRICS_PATH})


class MeasuredRequests:
    """Counts every request but those of probes. To be outermost, so that refusals count too.

    `endpoint_of` gives the endpoint that a path belongs to; "" where it is none.
    """

    def __init__(self, app: ASGIApp, metrics: RequestMetrics, endpoint_of: Callable[[str], str] = str) -> None:
        self._app = app
        self._metrics = metrics
        self._endpoint_of = endpoint_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status, is_whole = CLIENT_GONE, False

        async def send_noting(message: Message) -> None:
            nonlocal status, is_whole
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                is_whole = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        finally:
            model_name = scope.get("state", {}).get(MODEL_STATE, "")
            numbers = self._metrics.of(model_name, self._endpoint_of(scope["path"]))
            numbers.ended(status if is_whole else CLIENT_GONE, time.perf_counter() - started)


def add_metrics_route(router: APIRouter, source: Source) -> None:
    """GET and HEAD /metrics."""

    @router.head(METRICS_PATH, include_in_schema=False)
    @router.get(METRICS_PATH, tags=["State"], response_class=Response)
    async def metrics() -> Response:
        """The figures of this server, for Prometheus."""
        body, content_type = await metrics_response(source)
        return Response(body, media_type=content_type)
