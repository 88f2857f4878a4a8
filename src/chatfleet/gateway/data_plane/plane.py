"""What all requests of the data plane share."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from chatfleet.core.fleet import WorkerInfo
from chatfleet.dispatch.policies import Policies, Policy
from chatfleet.dispatch.upstream import Upstream
from chatfleet.dispatch.view import FleetView, Worker
from chatfleet.gateway.access_log import AccessLines
from chatfleet.gateway.cors import Cors
from chatfleet.gateway.data_plane.heads import worker_head
from chatfleet.gateway.endpoints import ENDPOINTS, Endpoint
from chatfleet.gateway.models import ModelNames
from chatfleet.http.trust import Keys
from chatfleet.observability.gateway import GatewayMetrics
from chatfleet.observability.requests import EndpointNumbers

_BY_PATH: Final = {path.encode(): endpoint for endpoint in ENDPOINTS for path in (endpoint.path, *endpoint.aliases)}
_MAX_KEPT: Final = 10_000


class Route(NamedTuple):
    """Where requests for a name go, and where they are counted."""

    model: str
    policy: Policy
    numbers: EndpointNumbers


@dataclass
class DataPlane:
    """`token` is what our own workers know the gateway by; `keys`, where there are any, is what clients must send."""

    names: ModelNames
    view: FleetView
    policies: Policies
    upstream: Upstream
    metrics: GatewayMetrics
    cors: Cors
    keys: Keys | None
    token: str | None
    session_header: bytes
    keep_alive_s: float
    recovery_buffer_bytes: int
    access_lines: AccessLines | None
    _routes: dict[tuple[str | None, str], Route] = field(default_factory=dict)
    _heads: dict[tuple[Worker, str], tuple[WorkerInfo, bytes]] = field(default_factory=dict)

    def endpoint(self, path: bytes) -> Endpoint | None:
        return _BY_PATH.get(path)

    def route(self, requested: str | None, endpoint: Endpoint) -> Route:
        """Where a request for a model goes, which has a worker now. Raises ModelNotFound, NoWorker, InvalidRequest."""
        route = self._routes.get((requested, endpoint.path))
        if route is not None and self.view.serves(route.model):
            return route
        model = self.names.resolve(requested)
        route = Route(model, self.policies.of(model), self.metrics.of(model, endpoint.path))
        if requested:  # else what is meant may change
            if len(self._routes) >= _MAX_KEPT:
                self._routes.clear()
            self._routes[requested, endpoint.path] = route
        return route

    def forget(self) -> None:
        """Keep nothing of workers and models that may have gone. To be called when the fleet has changed."""
        self._routes.clear()
        self._heads.clear()

    def worker_head(self, worker: Worker, path: str) -> bytes:
        """What every request to a path of a worker begins with."""
        info, head = self._heads.get((worker, path), (None, b""))
        if info is not worker.info:
            if len(self._heads) >= _MAX_KEPT:
                self._heads.clear()
            head = worker_head(worker.info, path, self.token)
            self._heads[worker, path] = worker.info, head
        return head
