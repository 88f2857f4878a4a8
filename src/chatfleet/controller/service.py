"""What a controller does, apart from HTTP: keeps the registry, and tells of its changes."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator

from chatfleet.controller.circuits import Circuits
from chatfleet.controller.errors import WorkerNotFound
from chatfleet.controller.liveness import ExpiryTimer
from chatfleet.controller.registry import Member, Registry
from chatfleet.controller.watch import Watchers
from chatfleet.core.errors import InvalidRequest
from chatfleet.core.fleet import (
    ALIVE_INTERVAL_S,
    ControllerAlive,
    FleetChange,
    FleetSnapshot,
    Heartbeat,
    Loads,
    Registration,
    WorkerInfo,
)

logger = logging.getLogger(__name__)


class ControllerService:
    """The fleet as this controller knows it, from its start on. Used on one event loop."""

    def __init__(self, registry: Registry, *, controller_id: str, heartbeat_interval_s: float) -> None:
        self.registry = registry
        self.circuits = Circuits()
        self.controller_id = controller_id
        self.epoch = time.time_ns()
        self.heartbeat_interval_s = heartbeat_interval_s
        self.heartbeats = 0
        self._started_s = self.now()
        self._watchers = Watchers(self.snapshot, self.alive)
        self._expiry = ExpiryTimer(registry, self._watchers.publish, grace_s=heartbeat_interval_s)

    @staticmethod
    def now() -> float:
        """Seconds of the clock that the registry counts in."""
        return asyncio.get_running_loop().time()

    @property
    def uptime_s(self) -> float:
        return self.now() - self._started_s

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    def hear(self, heartbeat: Heartbeat) -> Registration:
        """Register a worker or keep it alive. Raises FleetFull."""
        self.heartbeats += 1
        is_new = self.registry.get(heartbeat.worker.worker_id) is None
        changes = self.registry.hear(heartbeat, self.now())
        if is_new:
            _log_arrival(heartbeat.worker, changes)
        self._watchers.publish(changes)
        self._expiry.arm()
        member = self.registry.get(heartbeat.worker.worker_id)
        return Registration(
            controller_id=self.controller_id,
            epoch=self.epoch,
            heartbeat_interval_s=self.heartbeat_interval_s,
            expiry_s=self.registry.expiry_s,
            drain=member is not None and member.draining,
        )

    def drain(self, worker_id: str) -> Member:
        """A worker gets no new requests from now on, and is told with its next heartbeat to finish what it has and end.
        Idempotent. Raises WorkerNotFound; InvalidRequest for a registered server, which nobody can tell that."""
        member = self.registry.get(worker_id)
        if member is None:
            raise WorkerNotFound(f"There is no worker {worker_id}. See `chatfleet status` for those that are there.")
        if member.worker.kind != "chatfleet":
            raise InvalidRequest(
                f"{worker_id} is a registered server, which cannot be told to end. Unregister it instead: then it gets "
                "no new requests."
            )
        if not member.draining:
            logger.info("worker %s is draining", worker_id)
        self._watchers.publish(self.registry.drain(worker_id))
        return member

    def deregister(self, worker_id: str) -> None:
        """A worker leaves; nothing happens when it is not known."""
        changes = self.registry.deregister(worker_id)
        if changes:
            logger.info("worker %s has left", worker_id)
        self._watchers.publish(changes)

    def snapshot(self) -> FleetSnapshot:
        return FleetSnapshot(
            controller_id=self.controller_id,
            epoch=self.epoch,
            version=self.registry.version,
            expiry_s=self.registry.expiry_s,
            workers=self.registry.workers(),
            loads=self._loads(self.heartbeat_interval_s),
        )

    def alive(self) -> ControllerAlive:
        """That nothing has changed, and the loads that came since such an event was made before."""
        return ControllerAlive(version=self.registry.version, loads=self._loads(ALIVE_INTERVAL_S))

    def _loads(self, age_s: float) -> Loads:
        return self.registry.loads(self.now() - age_s)

    def watch(self) -> AsyncGenerator[bytes, None]:
        """The fleet's events as server-sent events; see Watchers.watch."""
        return self._watchers.watch()

    def close(self) -> None:
        """End all watches now, and expire nobody from now on."""
        self._expiry.close()
        self._watchers.close()


def _log_arrival(worker: WorkerInfo, changes: list[FleetChange]) -> None:
    for change in changes:
        if change.type == "gone":
            logger.warning("worker %s is replaced by %s, at the same URL", change.worker_id, worker.worker_id)
    models = ", ".join(model.id for model in worker.models) or "no model yet"
    logger.info("worker %s at %s serves %s", worker.worker_id, worker.url, models)
