"""What all requests of the data plane share."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from chatfleet.core.errors import IdempotencyUnavailable, UnsupportedParameter
from chatfleet.core.fleet import WorkerInfo
from chatfleet.dispatch.attempts import Crowd, Patience, Quarantine, RetryBudget
from chatfleet.dispatch.policies import Policies, Policy
from chatfleet.dispatch.upstream import Upstream
from chatfleet.dispatch.view import FleetView, Worker
from chatfleet.gateway.access_log import AccessLines
from chatfleet.gateway.cors import Cors
from chatfleet.gateway.data_plane.heads import RequestHead, worker_head
from chatfleet.gateway.endpoints import ENDPOINTS, Endpoint
from chatfleet.gateway.models import ModelNames
from chatfleet.http.protocol import HttpProtocol, Turn
from chatfleet.http.trust import Keys
from chatfleet.observability.gateway import GatewayMetrics
from chatfleet.observability.requests import EndpointNumbers
from chatfleet.store.store import CompletionStore, Recording

_BY_PATH: Final = {path.encode(): endpoint for endpoint in ENDPOINTS for path in (endpoint.path, *endpoint.aliases)}
_MAX_KEPT: Final = 10_000


class Route(NamedTuple):
    """Where requests for a name go, and where they are counted."""

    model: str
    policy: Policy
    numbers: EndpointNumbers


class KeyedRequests(Protocol):
    """Who answers requests with an Idempotency-Key."""

    def turn(self, protocol: HttpProtocol, plane: "DataPlane", head: RequestHead) -> Turn:
        """Raises IdempotencyUnavailable."""

    def tick(self, now: float) -> None:
        """Look after time. To be called about once a second."""

    def close(self) -> None:
        """The process ends."""


class NoKeyedRequests:
    """Refuses them, where nobody could keep what they promise."""

    def turn(self, protocol: HttpProtocol, plane: "DataPlane", head: RequestHead) -> Turn:
        raise IdempotencyUnavailable(
            "This gateway cannot honour an Idempotency-Key: it runs as several processes that share no folder. Send "
            "the request without one, or have the operator see the gateway's log."
        )

    def tick(self, now: float) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class DataPlane:
    """`token` is what our own workers know the gateway by; `keys`, where there are any, is what clients must send. The
    completions that are kept, where any are, are in `store`."""

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
    patience: Patience
    crowd: Crowd
    access_lines: AccessLines | None
    keyed: KeyedRequests = field(default_factory=NoKeyedRequests)
    store: CompletionStore | None = None
    retries: RetryBudget = field(default_factory=RetryBudget)
    quarantine: Quarantine = field(default_factory=Quarantine)
    _routes: dict[tuple[str | None, str], Route] = field(default_factory=dict)
    _heads: dict[tuple[Worker, str], tuple[WorkerInfo, bytes]] = field(default_factory=dict)

    @property
    def keeps_events(self) -> bool:
        return self.recovery_buffer_bytes > 0

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

    def recording(self) -> Recording:
        """For an answer that is to be kept. Raises UnsupportedParameter."""
        if self.store is None:
            raise UnsupportedParameter(
                "'store' is not supported here: this gateway keeps no completions (--no-store, or no folder for them: "
                "--store-path). Leave it out.",
                param="store",
            )
        return self.store.recording()

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
