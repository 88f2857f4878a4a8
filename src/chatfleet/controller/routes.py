"""The controller's paths. Each handler reads, hands over and answers."""

import asyncio
from typing import TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from chatfleet.controller.errors import IdMismatch
from chatfleet.controller.servers import Servers
from chatfleet.controller.service import ControllerService
from chatfleet.controller.status import fleet_status, server_status, worker_status
from chatfleet.core.errors import InvalidRequest
from chatfleet.core.fleet import (
    CIRCUITS_PATH,
    DRAIN_PATH,
    SERVERS_PATH,
    SNAPSHOT_PATH,
    STATUS_PATH,
    WATCH_PATH,
    WORKERS_PATH,
    CircuitReport,
    FleetModel,
    Heartbeat,
    ServerRegistration,
)
from chatfleet.http.body import OFF_LOOP_BYTES, read_body, validate_body
from chatfleet.http.streaming import EventStreamResponse
from chatfleet.observability.asgi import add_metrics_route
from chatfleet.observability.exposition import Source

Body = TypeVar("Body", bound=FleetModel)


def make_router(service: ControllerService, servers: Servers, metrics: Source) -> APIRouter:
    """Every path of a controller."""
    router = APIRouter()

    @router.put(WORKERS_PATH + "/{worker_id}")
    async def heartbeat(request: Request, worker_id: str) -> Response:
        body = await _parse(request, Heartbeat)
        if body.worker.worker_id != worker_id:
            raise IdMismatch(
                f"The path names '{worker_id}' and the body '{body.worker.worker_id}'. Send the same id in both.",
                param="worker.worker_id",
            )
        return _json(service.hear(body))

    @router.delete(WORKERS_PATH + "/{worker_id}")
    async def deregister(worker_id: str) -> Response:
        service.deregister(worker_id)
        return _json(FleetModel())

    @router.post(DRAIN_PATH)
    async def drain(worker_id: str) -> Response:
        return _json(worker_status(service, service.drain(worker_id)))

    @router.post(SERVERS_PATH)
    async def register_server(request: Request) -> Response:
        server = await servers.register(await _parse(request, ServerRegistration))
        return _json(server_status(service, server))

    @router.delete(SERVERS_PATH)
    async def unregister_server(request: Request) -> Response:
        urls = request.query_params.getlist("url")
        if len(urls) != 1:
            raise InvalidRequest("Say which server: DELETE /fleet/servers?url=http://host:port", param="url")
        await servers.unregister(urls[0])
        return _json(FleetModel())

    @router.post(CIRCUITS_PATH)
    async def report_circuits(request: Request) -> Response:
        service.circuits.hear(await _parse(request, CircuitReport), service.now())
        return _json(FleetModel())

    @router.get(SNAPSHOT_PATH)
    async def snapshot() -> Response:
        return _json(service.snapshot())

    @router.get(STATUS_PATH)
    async def status() -> Response:
        return _json(fleet_status(service, servers))

    @router.get(WATCH_PATH)
    async def watch(request: Request) -> Response:
        return await EventStreamResponse.open(request.receive, service.watch())

    @router.head("/health")
    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.head("/ready")
    @router.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    add_metrics_route(router, metrics)
    return router


async def _parse(request: Request, model: type[Body]) -> Body:
    body = await read_body(request)
    if len(body) > OFF_LOOP_BYTES:
        return await asyncio.to_thread(validate_body, model, body)
    return validate_body(model, body)


def _json(answer: FleetModel) -> Response:
    return Response(answer.to_json(), media_type="application/json")
