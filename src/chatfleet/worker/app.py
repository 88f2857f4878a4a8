"""A worker's HTTP application, and the loop that runs it."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema

from chatfleet import __version__
from chatfleet.engines.process import ProcessEngine
from chatfleet.http.errors import install_error_handlers
from chatfleet.http.middleware import RequestMiddleware
from chatfleet.http.server import listen, make_server
from chatfleet.worker.admission import Admission
from chatfleet.worker.model_source import load_served_model
from chatfleet.worker.routes import REQUEST_MODELS, make_router
from chatfleet.worker.service import WorkerService
from chatfleet.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)


def create_app(service: WorkerService, *, strict: bool) -> FastAPI:
    # /docs brings its own scripts: a host without the internet shows it too.
    app = FastAPIOffline(title="ChatFleet worker", version=__version__, redirect_slashes=False, redoc_url=None)
    app.include_router(make_router(service, strict=strict))
    app.add_middleware(RequestMiddleware)
    install_error_handlers(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description plus the request bodies that the handlers parse themselves."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, definitions = models_json_schema(
            [(model, "validation") for model in REQUEST_MODELS], ref_template="#/components/schemas/{model}"
        )
        schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        app.openapi_schema = schema
    return app.openapi_schema


async def run_worker(settings: WorkerSettings, announce: Callable[[str, tuple[str, ...]], None]) -> None:
    """Serve until a signal. `announce(base_url, model_names)` is called once requests are answered.

    The server listens while the model loads (/health is up, /ready is not). Raises ConfigurationError.
    """
    model = await asyncio.to_thread(load_served_model, settings)
    listener = listen(settings.host, settings.port)
    engine = ProcessEngine(settings.engine_config(str(model.path) if model.path else None))
    admission = Admission(max_concurrency=settings.max_concurrency, max_queue=settings.max_queue)
    service = WorkerService(model, engine, admission)
    app = await asyncio.to_thread(create_app, service, strict=settings.strict)  # it looks for the files of /docs
    server = make_server(app)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    starting = asyncio.create_task(service.start())
    try:
        await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            announce(base_url(settings.host, listener.getsockname()[1]), model.names)
        await serving
    finally:
        starting.cancel()
        server.stop()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(starting, serving, return_exceptions=True)
        await engine.aclose()


def base_url(host: str, port: int) -> str:
    """Where a client on this machine reaches a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)
    return f"http://{f'[{reachable}]' if ':' in reachable.strip('[]') else reachable}:{port}"
