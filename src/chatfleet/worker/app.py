"""A worker's HTTP application, and the loop that runs it."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from fastapi import FastAPI

from chatfleet.engines.process import ProcessEngine
from chatfleet.http.control import new_session
from chatfleet.http.errors import install_error_handlers
from chatfleet.http.middleware import handle_requests
from chatfleet.http.openapi import documented_app
from chatfleet.http.protocol import HttpProtocol
from chatfleet.http.server import base_url, listen, make_server
from chatfleet.http.trust import add_guard
from chatfleet.observability.asgi import MeasuredRequests
from chatfleet.worker.admission import Admission
from chatfleet.worker.load_header import LoadHeader
from chatfleet.worker.model_source import ServedModel
from chatfleet.worker.registration import Membership
from chatfleet.worker.routes import make_router
from chatfleet.worker.service import WorkerService
from chatfleet.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

_TICK_S: Final = 0.25
"""How late an idle connection may be closed when the worker stops."""


class WorkerProtocol(HttpProtocol):
    """A gateway's connection. Gateways hear a moment later than we that the worker stops: what they send until then is
    answered."""

    idle_linger_s = 1.0


def create_app(service: WorkerService, *, strict: bool, token: str | None, host: str) -> FastAPI:
    """`token`, where given, is what every call must carry; without one, calls that a web page of another site could
    make are refused, and `host` is known as this server's name beside those of loopback."""
    app = documented_app("ChatFleet worker", with_keys=token is not None)
    app.include_router(make_router(service, strict=strict))
    app.add_middleware(LoadHeader, load=service.load)
    add_guard(app, token=token, host=host)
    handle_requests(app)
    app.add_middleware(MeasuredRequests, metrics=service.metrics)
    install_error_handlers(app)
    return app


async def run_worker(
    settings: WorkerSettings, model: ServedModel, announce: Callable[[str, tuple[str, ...]], None]
) -> None:
    """Serve `model` until a signal. `announce(base_url, model_names)` is called once requests are answered.

    The server listens while the model loads (/health is up, /ready is not). The worker joins the fleet when it can
    answer. At a signal it leaves the fleet at once, and then finishes what it has; where a controller has it drained,
    it stays known, as not ready, until that is done. Raises ConfigurationError.
    """
    token = await asyncio.to_thread(settings.listening_token, settings.host)
    listener = listen(settings.host, settings.port)
    port = listener.getsockname()[1]
    async with new_session() as session:
        engine = ProcessEngine(
            settings.engine_config(model.engine, model.path, model.draft_path, model.grammar_bytes),
            on_ready_change=lambda _ready: membership.announce(),
        )
        admission = Admission(max_concurrency=settings.max_concurrency, max_queue=settings.max_queue)
        service = WorkerService(model, engine, admission, is_in_fleet=bool(settings.controller_urls))
        url = settings.advertise_url
        if url is None:
            url = await asyncio.to_thread(advertised_url, settings.host, port, settings.controller_urls)
        heartbeat = partial(service.heartbeat, url, settings.speed)
        membership = Membership(session, settings.controller_urls, token, heartbeat, on_drain=lambda: server.finish())
        app = await asyncio.to_thread(create_app, service, strict=settings.strict, token=token, host=settings.host)
        leaving: list[asyncio.Task[None]] = []
        server = make_server(
            app,
            protocol=WorkerProtocol,
            on_stop=lambda: leaving.append(asyncio.create_task(membership.leave())),
            tick_s=_TICK_S,
            drain_timeout_s=settings.drain_timeout,
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        starting = asyncio.create_task(service.start())
        try:
            await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and not server.should_exit:
                await starting
                membership.join()
                announce(base_url(settings.host, port), model.names)
            await serving
        finally:
            starting.cancel()
            server.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(starting, serving, *leaving, return_exceptions=True)
            await engine.aclose()


def advertised_url(host: str, port: int, controller_urls: Sequence[str]) -> str:
    """How others reach a server that listens on `host`: where that is every address, on the one that leads to the
    first controller."""
    if host in ("0.0.0.0", "::", "") and controller_urls:
        controller = urlsplit(controller_urls[0])
        with contextlib.suppress(OSError):
            family, _, _, _, address = socket.getaddrinfo(controller.hostname, controller.port, type=socket.SOCK_DGRAM)[
                0
            ]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)  # sends nothing
                return base_url(probe.getsockname()[0], port)
    return base_url(host, port)
