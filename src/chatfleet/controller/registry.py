"""Who is in the fleet: state and decisions, without a clock and without a socket.

All times are seconds of one monotonic clock, given by the caller, and never go back.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Final

from chatfleet.controller.errors import FleetFull
from chatfleet.core.fleet import (
    MAX_LOADS,
    FleetChange,
    GoneReason,
    Heartbeat,
    Loads,
    WorkerChanged,
    WorkerGone,
    WorkerInfo,
    WorkerLoad,
)

MAX_WORKERS: Final = 4096
MAX_FLEET_BYTES: Final = 32 * 1024 * 1024
"""Of all workers' descriptions as JSON: a snapshot is one event, and those who watch bound events to twice this."""


@dataclass(slots=True)
class Member:
    """A worker, its load, and when it was last heard of. One that is `draining` is not ready, whatever it says."""

    worker: WorkerInfo
    load: WorkerLoad
    heard_s: float
    size_bytes: int
    draining: bool = False


class Registry:
    """The workers that were heard of within the last `expiry_s`.

    Every change is returned as the event that tells it; `version` counts them. What changes nothing but a worker's
    load or its deadline is no event.
    """

    def __init__(
        self, expiry_s: float, *, max_workers: int = MAX_WORKERS, max_fleet_bytes: int = MAX_FLEET_BYTES
    ) -> None:
        self.expiry_s = expiry_s
        self.version = 0
        self._max_workers = max_workers
        self._max_fleet_bytes = max_fleet_bytes
        self._members: dict[str, Member] = {}  # by worker id, the longest silent first
        self._id_by_url: dict[str, str] = {}
        self._fleet_bytes = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._members

    def get(self, worker_id: str) -> Member | None:
        return self._members.get(worker_id)

    def holder(self, url: str) -> WorkerInfo | None:
        """The worker at this URL."""
        worker_id = self._id_by_url.get(url)
        return None if worker_id is None else self._members[worker_id].worker

    def workers(self) -> tuple[WorkerInfo, ...]:
        return tuple(member.worker for member in self)

    def loads(self, since_s: float) -> Loads:
        """Of the workers that were heard of from `since_s` on, the latest first."""
        recent = takewhile(lambda member: member.heard_s >= since_s, reversed(self._members.values()))
        return {member.worker.worker_id: member.load for member in islice(recent, MAX_LOADS)}

    def hear(self, heartbeat: Heartbeat, now: float) -> list[FleetChange]:
        """A worker lives. Another one with its URL is replaced. Raises FleetFull, and then nothing has changed."""
        worker = heartbeat.worker
        known = self._members.get(worker.worker_id)
        draining = known is not None and known.draining
        if draining:
            worker = worker.model_copy(update={"ready": False})
        if known is not None and known.worker == worker:
            self._members[worker.worker_id] = self._members.pop(worker.worker_id)
            known.load, known.heard_s = heartbeat.load, now
            return []
        member = Member(worker, heartbeat.load, now, len(worker.to_json()), draining)
        holder_id = self._id_by_url.get(worker.url, worker.worker_id)
        replaced = self._members.get(holder_id) if holder_id != worker.worker_id else None
        self._check_room(member, known, replaced)
        changes: list[FleetChange] = []
        if replaced is not None:
            changes.append(self._remove(replaced, "replaced"))
        if known is not None:
            self._forget(known)
        self._members[worker.worker_id] = member
        self._id_by_url[worker.url] = worker.worker_id
        self._fleet_bytes += member.size_bytes
        self.version += 1
        changes.append(WorkerChanged(version=self.version, worker=worker))
        return changes

    def drain(self, worker_id: str) -> list[FleetChange]:
        """From now on this worker is not ready, until it leaves. One that is not known is no error."""
        member = self._members.get(worker_id)
        if member is None:
            return []
        member.draining = True
        if not member.worker.ready:
            return []
        member.worker = member.worker.model_copy(update={"ready": False})
        self._fleet_bytes -= member.size_bytes
        member.size_bytes = len(member.worker.to_json())
        self._fleet_bytes += member.size_bytes
        self.version += 1
        return [WorkerChanged(version=self.version, worker=member.worker)]

    def deregister(self, worker_id: str) -> list[FleetChange]:
        """A worker has said that it leaves. One that is not known is no error."""
        member = self._members.get(worker_id)
        return [] if member is None else [self._remove(member, "deregistered")]

    def expire(self, now: float) -> list[FleetChange]:
        """Remove the workers whose deadline has come."""
        changes: list[FleetChange] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            changes.append(self._remove(next(iter(self)), "expired"))
        return changes

    def next_deadline(self) -> float | None:
        """When the longest silent worker expires; None when there is no worker."""
        return next((member.heard_s + self.expiry_s for member in self), None)

    def excuse(self, silence_s: float) -> None:
        """Do not count this much silence against anybody: it was the controller that did not listen."""
        for member in self:
            member.heard_s += silence_s

    def _check_room(self, member: Member, *leaving: Member | None) -> None:
        left = [one for one in leaving if one is not None]
        if len(self) - len(left) >= self._max_workers:
            raise FleetFull(
                f"This controller knows {self._max_workers} workers, and no more fit. Let some leave, or run another "
                "controller for the rest."
            )
        if self._fleet_bytes - sum(one.size_bytes for one in left) + member.size_bytes > self._max_fleet_bytes:
            raise FleetFull(
                f"The descriptions of all workers would take more than {self._max_fleet_bytes} bytes. Let this one "
                "serve fewer models, or run another controller for it."
            )

    def _remove(self, member: Member, reason: GoneReason) -> WorkerGone:
        self._forget(member)
        self.version += 1
        return WorkerGone(version=self.version, worker_id=member.worker.worker_id, reason=reason)

    def _forget(self, member: Member) -> None:
        del self._members[member.worker.worker_id]
        del self._id_by_url[member.worker.url]
        self._fleet_bytes -= member.size_bytes
