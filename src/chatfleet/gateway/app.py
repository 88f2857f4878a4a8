"""The gateway's HTTP application and its data plane, and the loop that runs them."""

import asyncio
import contextlib
import gc
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Final

from fastapi import FastAPI

from chatfleet.core.errors import model_list
from chatfleet.dispatch.attempts import Crowd
from chatfleet.dispatch.policies import Policies
from chatfleet.dispatch.upstream import Upstream
from chatfleet.dispatch.view import FleetView
from chatfleet.dispatch.watch import FleetWatch
from chatfleet.gateway.access_log import AccessLines, AccessLog
from chatfleet.gateway.cors import Cors
from chatfleet.gateway.data_plane.forwarded import Owner
from chatfleet.gateway.data_plane.idempotent import IdempotentRequests
from chatfleet.gateway.data_plane.plane import DataPlane, KeyedRequests, NoKeyedRequests
from chatfleet.gateway.data_plane.protocol import GatewayProtocol, SiblingProtocol
from chatfleet.gateway.endpoints import ENDPOINTS, STORED_PATH
from chatfleet.gateway.models import ModelNames
from chatfleet.gateway.routes import make_router
from chatfleet.gateway.settings import EndpointSettings, GatewaySettings
from chatfleet.gateway.siblings import Place, listen_for_siblings, own_place
from chatfleet.gateway.stored import make_stored_router
from chatfleet.http.control import new_session
from chatfleet.http.errors import install_error_handlers
from chatfleet.http.middleware import ErrorAnswers, handle_requests
from chatfleet.http.openapi import documented_app
from chatfleet.http.server import BACKLOG, TICK_S, Server, base_url, listen, make_server
from chatfleet.http.trust import KeyGuard, Keys, SingleHost
from chatfleet.observability.asgi import MeasuredRequests
from chatfleet.observability.gateway import GatewayMetrics
from chatfleet.observability.sharing import shared_file
from chatfleet.store.database import Database
from chatfleet.store.store import CompletionStore, default_store_path

logger = logging.getLogger(__name__)

_TIDY_S: Final = 5.0
_TIDY_STORE_S: Final = 600.0
_GC_THRESHOLD: Final = 50_000
"""Objects made between looks for cycles: requests make none, and a look takes a millisecond with 1000 streams."""


def create_app(
    settings: EndpointSettings,
    names: ModelNames,
    metrics: GatewayMetrics,
    keys: Keys | None,
    store: CompletionStore | None,
) -> FastAPI:
    """Everything but the data plane."""
    app = documented_app("ChatFleet", with_keys=keys is not None)
    if store is not None:
        app.include_router(make_stored_router(store, with_keys=keys is not None))
    app.include_router(make_router(names, metrics))
    if keys is not None:
        app.add_middleware(KeyGuard, keys=keys)
    app.add_middleware(ErrorAnswers)  # inside of CORS, so that pages may read why they are refused
    app.add_middleware(Cors, settings=settings)
    app.add_middleware(SingleHost)
    handle_requests(app)
    app.add_middleware(MeasuredRequests, metrics=metrics, endpoint_of=_cold_endpoint)
    if settings.access_log:
        app.add_middleware(AccessLog, lines=AccessLines(settings.trusted_proxies))
    install_error_handlers(app)
    return app


def _cold_endpoint(path: str) -> str:
    """The endpoint that a request counts for, which the data plane has not taken. A list of stored completions is none
    of the requests that generate something."""
    return "" if path == STORED_PATH else path


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
    default_tls = await asyncio.to_thread(ssl.create_default_context)
    upstream = Upstream(default_tls, connect_timeout_s=settings.connect_timeout)
    metrics = GatewayMetrics(
        [endpoint.path for endpoint in ENDPOINTS],
        upstream_connections=lambda: upstream.connections,
        workers=lambda: {model: len(view.workers_of(model)) for model in view.models()},
        circuits=view.circuits,
        file=shared_file(),
    )
    place = own_place()
    keyed = _keyed_requests(place, settings, default_tls)
    listener = listen(settings.host, settings.port, settings.fd)
    store = await _completion_store(settings, listener.getsockname()[1])
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
        patience=settings.patience(),
        crowd=Crowd(settings.max_requests),
        access_lines=AccessLines(settings.trusted_proxies) if settings.access_log else None,
        keyed=keyed,
        store=store,
    )
    app = await asyncio.to_thread(create_app, settings, names, metrics, keys, store)  # it looks for the files of /docs
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

    timeouts = {"head_timeout_s": settings.head_timeout, "body_timeout_s": settings.body_timeout}
    tick_s = min(TICK_S, *(timeout_s / 4 for timeout_s in settings.kept_times()))
    server = make_server(
        app,
        protocol=partial(GatewayProtocol, plane, **timeouts),
        trusted_proxies=",".join(settings.trusted_proxies),
        tls=tls,
        drain_timeout_s=settings.drain_timeout,
        tick_s=tick_s,
    )
    siblings = partial(SiblingProtocol, replace(plane, keys=None, access_lines=None), **timeouts)
    async with new_session() as control, metrics.sharing(), _open_to_siblings(place, server, siblings):
        announce(url, ())
        watch = FleetWatch(control, settings.controller_urls, token, view, view_changed)
        watch.start()
        tidying = asyncio.create_task(_tidy(upstream))
        tidying_store = None if store is None else asyncio.create_task(_tidy_store(store))
        ticking = asyncio.create_task(_tick(keyed, tick_s))
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        try:
            await server.serve(sockets=[listener])
        finally:
            tidying.cancel()
            ticking.cancel()
            keyed.close()
            await watch.aclose()
            upstream.close_idle(0.0)
            if store is not None and tidying_store is not None:
                tidying_store.cancel()
                await store.aclose()


def _keyed_requests(place: Place, settings: GatewaySettings, tls: ssl.SSLContext) -> KeyedRequests:
    if place.is_owner:
        return IdempotentRequests(settings.idempotency_buffer_mb * 2**20)
    if place.path is not None:
        return Owner(place.path, tls)
    logger.warning(
        "requests with an Idempotency-Key are refused: the gateway's processes have no folder for what they would "
        "share (XDG_RUNTIME_DIR may name one; its path must be short)"
    )
    return NoKeyedRequests()


async def _completion_store(settings: GatewaySettings, port: int) -> CompletionStore | None:
    if settings.no_store:
        return None
    path = settings.store_path or default_store_path(port)
    if path is None:
        logger.warning("there is no home folder: no completions can be stored. Set --store-path.")
        return None
    store = CompletionStore(Database(path, settings.store_bounds()))
    await store.open()
    return store


@contextlib.asynccontextmanager
async def _open_to_siblings(
    place: Place, server: Server, protocol: Callable[..., SiblingProtocol]
) -> AsyncIterator[None]:
    """Have the connections of other gateway processes served, until after `server` has ended: they end, too, and still
    have requests. Raises ConfigurationError."""
    if not place.is_owner or place.path is None:
        yield
        return
    listener = await asyncio.to_thread(listen_for_siblings, place.path, BACKLOG)
    accepting = await asyncio.get_running_loop().create_unix_server(
        lambda: protocol(config=server.config, server_state=server.server_state, app_state={}), sock=listener
    )
    try:
        yield
    finally:
        accepting.close()


async def _tick(keyed: KeyedRequests, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        keyed.tick(time.monotonic())


async def _tidy(upstream: Upstream) -> None:
    while True:
        await asyncio.sleep(_TIDY_S)
        upstream.close_idle()


async def _tidy_store(store: CompletionStore) -> None:
    while True:
        await asyncio.sleep(_TIDY_STORE_S)
        await store.tidy()


async def _no_app(*_: object) -> None:
    """Cors wants an application, and its headers do not need one."""
