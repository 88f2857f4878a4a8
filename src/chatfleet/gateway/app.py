"""The gateway's HTTP application and its data plane, and the loop that runs them."""

import asyncio
import gc
import logging
import random
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

from fastapi import FastAPI

from chatfleet.core.errors import model_list
from chatfleet.dispatch.policies import Policies
from chatfleet.dispatch.upstream import Upstream
from chatfleet.dispatch.view import FleetView
from chatfleet.dispatch.watch import FleetWatch
from chatfleet.gateway.access_log import AccessLines, AccessLog
from chatfleet.gateway.cors import Cors
from chatfleet.gateway.data_plane.plane import DataPlane
from chatfleet.gateway.data_plane.protocol import GatewayProtocol
from chatfleet.gateway.endpoints import ENDPOINTS
from chatfleet.gateway.models import ModelNames
from chatfleet.gateway.routes import make_router
from chatfleet.gateway.settings import EndpointSettings, GatewaySettings
from chatfleet.http.control import new_session
from chatfleet.http.errors import install_error_handlers
from chatfleet.http.middleware import ErrorAnswers, handle_requests
from chatfleet.http.openapi import documented_app
from chatfleet.http.server import TICK_S, base_url, listen, make_server
from chatfleet.http.trust import KeyGuard, Keys, SingleHost
from chatfleet.observability.asgi import MeasuredRequests
from chatfleet.observability.gateway import GatewayMetrics
from chatfleet.observability.sharing import shared_file

logger = logging.getLogger(__name__)

_TIDY_S: Final = 5.0
_GC_THRESHOLD: Final = 50_000
"""Objects made between looks for cycles: requests make none, and a look takes a millisecond with 1000 streams."""


def create_app(settings: EndpointSettings, names: ModelNames, metrics: GatewayMetrics, keys: Keys | None) -> FastAPI:
    """Everything but the data plane."""
    app = documented_app("ChatFleet", with_keys=keys is not None)
    app.include_router(make_router(names, metrics))
    if keys is not None:
        app.add_middleware(KeyGuard, keys=keys)
    app.add_middleware(ErrorAnswers)  # inside of CORS, so that pages may read why they are refused
    app.add_middleware(Cors, settings=settings)
    app.add_middleware(SingleHost)
    handle_requests(app)
    app.add_middleware(MeasuredRequests, metrics=metrics)
    if settings.access_log:
        app.add_middleware(AccessLog, lines=AccessLines(settings.trusted_proxies))
    install_error_handlers(app)
    return app


async def run_gateway(settings: GatewaySettings, announce: Callable[[str, tuple[str, ...]], None]) -> None:
    """Serve until a signal. Raises ConfigurationError.

    `announce(base_url, names)` is called once requests are taken, and whenever other names can be asked for.
    """
    token = await asyncio.to_thread(settings.token)
    tls = await asyncio.to_thread(settings.tls)
    given_keys = await asyncio.to_thread(settings.keys)
    keys = Keys(given_keys) if given_keys else None
    view = FleetView()
    names = ModelNames(view, settings.alias_map(), settings.default_model)
    rng = random.Random()
    policies = Policies(settings.default_policy(), settings.policy_map(), rng)
    upstream = Upstream(await asyncio.to_thread(ssl.create_default_context))
    metrics = GatewayMetrics(
        [endpoint.path for endpoint in ENDPOINTS],
        upstream_connections=lambda: upstream.connections,
        workers=lambda: {model: len(view.workers_of(model)) for model in view.models()},
        file=shared_file(),
    )
    plane = DataPlane(
        names=names,
        view=view,
        policies=policies,
        upstream=upstream,
        metrics=metrics,
        cors=Cors(_no_app, settings),
        keys=keys,
        token=token,
        session_header=settings.session_header.encode(),
        keep_alive_s=settings.keep_alive_interval,
        recovery_buffer_bytes=settings.recovery_buffer_kb * 1024,
        access_lines=AccessLines(settings.trusted_proxies) if settings.access_log else None,
    )
    app = await asyncio.to_thread(create_app, settings, names, metrics, keys)  # it looks for the files of /docs
    listener = listen(settings.host, settings.port, settings.fd)
    url = base_url(settings.host, listener.getsockname()[1], tls=tls is not None)
    announced: tuple[str, ...] = ()

    workers: set[str] = set()

    def view_changed() -> None:
        nonlocal announced, workers
        if (known := view.worker_ids()) != workers:
            workers = known
            policies.retain(known)
            plane.forget()
        served = tuple(names.served())
        if served != announced:
            announced = served
            logger.info("serving %s", model_list(served) or "no model at the moment")
            for name, model in names.lost():
                logger.warning("%s stands for the model %s, which no worker serves now", name, model)
            announce(url, served)

    protocol = partial(
        GatewayProtocol, plane, head_timeout_s=settings.head_timeout, body_timeout_s=settings.body_timeout
    )
    server = make_server(
        app,
        protocol=protocol,
        trusted_proxies=",".join(settings.trusted_proxies),
        tls=tls,
        tick_s=min(TICK_S, settings.keep_alive_interval / 4, settings.head_timeout / 4, settings.body_timeout / 4),
    )
    announce(url, ())
    async with new_session() as control, metrics.sharing():
        watch = FleetWatch(control, settings.controller_urls, token, view, view_changed)
        watch.start()
        tidying = asyncio.create_task(_tidy(upstream))
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        try:
            await server.serve(sockets=[listener])
        finally:
            tidying.cancel()
            await watch.aclose()
            upstream.close_idle(0.0)


async def _tidy(upstream: Upstream) -> None:
    while True:
        await asyncio.sleep(_TIDY_S)
        upstream.close_idle()


async def _no_app(*_: object) -> None:
    """Cors wants an application, and its headers do not need one."""
