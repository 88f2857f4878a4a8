"""What a controller measures: its requests, and the fleet as it knows it."""

from collections import Counter
from typing import Final

from chatfleet.controller.servers import Servers
from chatfleet.controller.service import ControllerService
from chatfleet.controller.status import fleet_status
from chatfleet.core.fleet import (
    CIRCUITS_PATH,
    SERVERS_PATH,
    SNAPSHOT_PATH,
    STATUS_PATH,
    WATCH_PATH,
    WORKERS_PATH,
    WorkerStatus,
)
from chatfleet.observability.exposition import Scrape
from chatfleet.observability.families import counter, gauge, request_families
from chatfleet.observability.requests import RequestMetrics

_ENDPOINTS: Final = (WORKERS_PATH, SERVERS_PATH, SNAPSHOT_PATH, STATUS_PATH, WATCH_PATH, CIRCUITS_PATH)
STATES: Final = ("ready", "not_ready", "draining", "overdue", "away")


class ControllerMetrics(RequestMetrics):
    """The numbers of one controller."""

    def __init__(self, service: ControllerService, servers: Servers) -> None:
        super().__init__(_ENDPOINTS)
        self._service = service
        self._servers = servers

    async def scrape(self) -> Scrape:
        service = self._service
        states = Counter(worker_state(worker) for worker in fleet_status(service, self._servers).workers)
        return Scrape(
            [
                *request_families(self.all()),
                gauge(
                    "chatfleet:fleet_workers",
                    "Workers of the fleet, registered servers included, each in one state.",
                    ("state",),
                    (((state,), states[state]) for state in STATES),
                ),
                counter(
                    "chatfleet:heartbeats", "Heartbeats of workers that were heard.", (), [((), service.heartbeats)]
                ),
                counter(
                    "chatfleet:fleet_changes",
                    "Workers that came, went or became different, since this controller started.",
                    (),
                    [((), service.registry.version)],
                ),
                gauge("chatfleet:watchers", "Gateways that watch the fleet.", (), [((), service.watchers)]),
            ]
        )


def worker_state(worker: WorkerStatus) -> str:
    """The one of STATES that says most of what is wrong."""
    if worker.away:
        return "away"
    if worker.overdue:
        return "overdue"
    if worker.draining:
        return "draining"
    return "ready" if worker.ready else "not_ready"


def endpoint_of(path: str) -> str:
    """A worker's own path belongs to that of all workers."""
    return WORKERS_PATH if path.startswith(f"{WORKERS_PATH}/") else path
