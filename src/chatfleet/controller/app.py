"""A controller's HTTP application, and the loop that runs it."""

import asyncio
import contextlib
import os.path
import socket
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI

from chatfleet.controller.metrics import ControllerMetrics, endpoint_of
from chatfleet.controller.probe import probe_session
from chatfleet.controller.registry import Registry
from chatfleet.controller.routes import make_router
from chatfleet.controller.servers import Servers
from chatfleet.controller.service import ControllerService
from chatfleet.controller.settings import ControllerSettings
from chatfleet.controller.state_file import StateFile, default_state_file
from chatfleet.http.errors import install_error_handlers
from chatfleet.http.middleware import handle_requests
from chatfleet.http.server import base_url, listen, make_server
from chatfleet.http.trust import JsonMutations, add_guard
from chatfleet.observability.asgi import MeasuredRequests


def create_app(service: ControllerService, servers: Servers, *, token: str | None, host: str) -> FastAPI:
    """`token`, where given, is what every call must carry; without one, calls that a web page could make are refused,
    and `host` is known as this server's name beside those of loopback."""
    app = FastAPI(title="ChatFleet controller", openapi_url=None, redirect_slashes=False)
    metrics = ControllerMetrics(service, servers)
    app.include_router(make_router(service, servers, metrics))
    app.add_middleware(JsonMutations)
    add_guard(app, token=token, host=host)
    handle_requests(app)
    app.add_middleware(MeasuredRequests, metrics=metrics, endpoint_of=endpoint_of)
    install_error_handlers(app)
    return app


async def run_controller(settings: ControllerSettings, announce: Callable[[str], None]) -> None:
    """Serve until a signal; open watches end at once then. `announce(base_url)` is called once it listens.

    Raises ConfigurationError.
    """
    token = await asyncio.to_thread(settings.listening_token, settings.host)
    with contextlib.closing(listen(settings.host, settings.port, settings.fd)) as listener:
        host, port = listener.getsockname()[:2]
        if settings.fd is None:
            host = settings.host
        else:
            await asyncio.to_thread(settings.listening_token, host)
        registry = Registry(settings.expiry)
        service = ControllerService(
            registry,
            controller_id=settings.controller_id or f"{socket.gethostname()}:{port}",
            heartbeat_interval_s=settings.heartbeat_interval,
        )
        async with (
            probe_session() as session,
            contextlib.aclosing(Servers(service, session, _state_file(settings))) as servers,
        ):
            await servers.restore()
            app = create_app(service, servers, token=token, host=host)
            announce(base_url(host, port))
            try:
                await make_server(app, on_stop=service.close).serve(sockets=[listener])
            finally:
                service.close()


def _state_file(settings: ControllerSettings) -> StateFile | None:
    """Where servers are remembered: by port, unless a file is named; nowhere when the port is not a lasting one."""
    path: Path | None = settings.state_file
    if path is None and settings.port and settings.fd is None:
        path = default_state_file(settings.port)
    return None if path is None else StateFile(Path(os.path.expanduser(path)))
