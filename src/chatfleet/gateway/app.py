"""The gateway's HTTP application, and the loop that runs it."""

import asyncio
import logging
from collections.abc import Callable

from fastapi import FastAPI

from chatfleet.core.errors import model_list
from chatfleet.dispatch.upstream import AiohttpUpstream, Upstream
from chatfleet.dispatch.view import FleetView
from chatfleet.dispatch.watch import FleetWatch
from chatfleet.gateway.access_log import AccessLog
from chatfleet.gateway.cors import Cors
from chatfleet.gateway.models import ModelNames
from chatfleet.gateway.relay import Relay
from chatfleet.gateway.routes import make_router
from chatfleet.gateway.settings import EndpointSettings, GatewaySettings
from chatfleet.http.control import new_session
from chatfleet.http.errors import install_error_handlers
from chatfleet.http.middleware import ErrorAnswers, handle_requests
from chatfleet.http.openapi import documented_app
from chatfleet.http.server import base_url, listen, make_server
from chatfleet.http.trust import KeyGuard, Keys, SingleHost

logger = logging.getLogger(__name__)


def create_app(settings: EndpointSettings, names: ModelNames, relay: Relay) -> FastAPI:
    """Raises ConfigurationError when the API keys cannot be had."""
    keys = settings.keys()
    app = documented_app("ChatFleet", with_keys=bool(keys))
    app.include_router(make_router(names, relay))
    if keys:
        app.add_middleware(KeyGuard, keys=Keys(keys))
    app.add_middleware(ErrorAnswers)  # inside of CORS, so that pages may read why they are refused
    app.add_middleware(Cors, settings=settings)
    app.add_middleware(SingleHost)
    handle_requests(app)
    if settings.access_log:
        app.add_middleware(AccessLog)
    install_error_handlers(app)
    return app


async def run_gateway(settings: GatewaySettings, announce: Callable[[str, tuple[str, ...]], None]) -> None:
    """Serve until a signal. Raises ConfigurationError.

    `announce(base_url, names)` is called once requests are taken, and whenever other names can be asked for.
    """
    token = await asyncio.to_thread(settings.token)
    view = FleetView()
    names = ModelNames(view, settings.alias_map(), settings.default_model)
    async with AiohttpUpstream.new_session() as session, new_session() as control:
        upstream: Upstream = AiohttpUpstream(session)
        relay = Relay(names, view, upstream, token=token, keep_alive_s=settings.keep_alive_interval)
        app = await asyncio.to_thread(create_app, settings, names, relay)  # it looks for the files of /docs
        listener = listen(settings.host, settings.port, settings.fd)
        url = base_url(settings.host, listener.getsockname()[1])
        announced: tuple[str, ...] = ()

        def view_changed() -> None:
            nonlocal announced
            served = tuple(names.served())
            if served != announced:
                announced = served
                logger.info("serving %s", model_list(served) or "no model at the moment")
                for name, model in names.lost():
                    logger.warning("%s stands for the model %s, which no worker serves now", name, model)
                announce(url, served)

        announce(url, ())
        watch = FleetWatch(control, settings.controller_urls, token, view, view_changed)
        watch.start()
        try:
            server = make_server(app, trusted_proxies=",".join(settings.trusted_proxies))
            await server.serve(sockets=[listener])
        finally:
            await watch.aclose()
