"""Servers that a person registered: asked again and again whether they live, and remembered on disk."""

import asyncio
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import aiohttp
from pydantic import TypeAdapter, ValidationError

from chatfleet.controller.errors import FleetFull, ServerNotFound, ServerRefused
from chatfleet.controller.probe import PROBE_TIMEOUT_S, ProbeFailed, probe
from chatfleet.controller.service import ControllerService
from chatfleet.controller.state_file import StateFile
from chatfleet.core.errors import InvalidRequest
from chatfleet.core.fleet import BaseUrl, Heartbeat, ModelInfo, ServerRegistration, WorkerInfo

logger = logging.getLogger(__name__)

MAX_SERVERS: Final = 256

_BASE_URL: TypeAdapter[str] = TypeAdapter(BaseUrl)


@dataclass(slots=True)
class Server:
    """A registration and what its last probe brought. `problem` is a sentence, or None; `heard_s` is when a probe
    last succeeded, on the controller's clock."""

    registration: ServerRegistration
    worker_id: str
    problem: str | None = None
    heard_s: float | None = None


class Servers:
    """All registered servers, on one event loop. A successful probe counts as a heartbeat of theirs."""

    def __init__(self, service: ControllerService, session: aiohttp.ClientSession, state_file: StateFile | None):
        self._service = service
        self._session = session
        self._state_file = state_file
        self._saving = asyncio.Lock()
        self._servers: dict[str, Server] = {}
        self._probing: dict[str, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Server]:
        return iter(self._servers.values())

    async def restore(self) -> None:
        """Begin to probe what was registered before the last end."""
        if self._state_file is not None:
            for registration in (await asyncio.to_thread(self._state_file.load))[:MAX_SERVERS]:
                server = Server(registration, server_id(registration.url), "It was not asked yet.")
                self._keep(server, delay_s=0.0)

    async def register(self, registration: ServerRegistration) -> Server:
        """Probe a server and take it in, in place of an earlier registration of its URL.

        Raises ServerRefused when it cannot serve as it is described, FleetFull.
        """
        registration = registration.model_copy(update={"url": plain_url(registration.url)})
        server = Server(registration, server_id(registration.url))
        self._check_room(server)
        try:
            models = await probe(self._session, registration, PROBE_TIMEOUT_S)
        except ProbeFailed as exc:
            raise ServerRefused(f"{registration.url} cannot be registered: {exc}.", param="url") from exc
        if missing := _missing(registration, models):
            raise ServerRefused(
                f"{registration.url} cannot be registered: it does not list {missing}. "
                f"See {registration.url}/v1/models for what it serves.",
                param="model_names",
            )
        self._check_room(server)
        if own := self._own_worker(server):
            raise ServerRefused(
                f"{registration.url} needs no registration: {own.worker_id} has registered itself there.", param="url"
            )
        self._heard(server, models)
        self._keep(server, delay_s=self._service.heartbeat_interval_s)
        await self._save()
        return server

    async def unregister(self, url: str) -> None:
        """Forget a server. Raises ServerNotFound."""
        try:
            url = plain_url(_BASE_URL.validate_python(url))
        except ValidationError as exc:
            raise InvalidRequest("It must be a URL such as http://10.0.0.2:8000", param="url") from exc
        server = self._servers.pop(server_id(url), None)
        if server is None:
            raise ServerNotFound(f"No server is registered as {url}. See `chatfleet status` for those that are.")
        self._probing.pop(server.worker_id).cancel()
        self._service.deregister(server.worker_id)
        await self._save()

    async def aclose(self) -> None:
        """End all probes."""
        tasks = list(self._probing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check_room(self, server: Server) -> None:
        if server.worker_id not in self._servers and len(self._servers) >= MAX_SERVERS:
            raise FleetFull(f"{MAX_SERVERS} servers are registered, and no more fit. Unregister some first.")

    def _keep(self, server: Server, *, delay_s: float) -> None:
        if (earlier := self._probing.get(server.worker_id)) is not None:
            earlier.cancel()
        self._servers[server.worker_id] = server
        self._probing[server.worker_id] = asyncio.create_task(self._probe_forever(server, delay_s))

    async def _probe_forever(self, server: Server, delay_s: float) -> None:
        interval_s = self._service.heartbeat_interval_s
        # What answers later than this after a heartbeat has expired already.
        timeout_s = min(PROBE_TIMEOUT_S, self._service.registry.expiry_s - interval_s)
        while True:
            await asyncio.sleep(delay_s)
            began_s = self._service.now()
            await self._probe(server, timeout_s)
            delay_s = interval_s - (self._service.now() - began_s) % interval_s

    async def _probe(self, server: Server, timeout_s: float) -> None:
        before = server.problem
        try:
            models = await probe(self._session, server.registration, timeout_s)
            self._heard(server, models)
        except ProbeFailed as exc:
            server.problem = f"At the last probe, {exc}."
        except FleetFull as exc:
            server.problem = exc.message
        if server.problem is None and before is not None:
            logger.info("server %s is well", server.registration.url)
        elif server.problem != before:
            logger.warning("server %s: %s", server.registration.url, server.problem)

    def _heard(self, server: Server, models: tuple[ModelInfo, ...]) -> None:
        """Take a successful probe as a heartbeat. Raises FleetFull."""
        server.heard_s = self._service.now()
        if own := self._own_worker(server):
            server.problem = f"{own.worker_id} has registered itself at this URL."
            return
        if not models:
            server.problem = "It lists none of its models." if server.registration.model_names else "It lists no model."
        elif missing := _missing(server.registration, models):
            server.problem = f"It no longer lists {missing}."
        else:
            server.problem = None
        self._service.hear(Heartbeat(worker=_worker(server, models)))

    def _own_worker(self, server: Server) -> WorkerInfo | None:
        """The worker that speaks for itself at this server's URL: it knows more, and knows it sooner."""
        holder = self._service.registry.holder(server.registration.url)
        return holder if holder is not None and holder.worker_id != server.worker_id else None

    async def _save(self) -> None:
        if self._state_file is not None:
            async with self._saving:
                registrations = [server.registration for server in self]
                await asyncio.to_thread(self._state_file.save, registrations)


def plain_url(url: str) -> str:
    """The URL under which /v1/... is found: clients are given it with /v1, and so may we be."""
    return url.removesuffix("/v1").rstrip("/")


def server_id(url: str) -> str:
    """The worker id of the server at this URL: the same always and everywhere."""
    return f"server-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def _worker(server: Server, models: tuple[ModelInfo, ...]) -> WorkerInfo:
    return WorkerInfo(
        worker_id=server.worker_id,
        url=server.registration.url,
        kind="openai",
        models=models,
        ready=bool(models),
        api_key=server.registration.api_key,
        allowed_fields=server.registration.allowed_fields,
        speed=server.registration.speed,
    )


def _missing(registration: ServerRegistration, models: tuple[ModelInfo, ...]) -> str:
    """Names of models that the server was to serve and does not list, comma-separated."""
    listed = {model.id for model in models}
    return ", ".join(f"'{name}'" for name in registration.model_names if name not in listed)
