"""The fleet for the eyes of a person. Nothing here holds a key."""

from typing import Final

from chatfleet.controller.registry import Member
from chatfleet.controller.servers import Server, Servers
from chatfleet.controller.service import ControllerService
from chatfleet.core.fleet import CircuitStatus, FleetStatus, WorkerLoad, WorkerStatus

_OVERDUE_INTERVALS: Final = 1.5


def fleet_status(service: ControllerService, servers: Servers) -> FleetStatus:
    """All workers, and the registered servers that are away."""
    problems = {server.worker_id: server.problem for server in servers}
    circuits = service.circuits.statuses(service.now())
    present = [
        _present(service, member, problems.get(member.worker.worker_id), circuits.get(member.worker.worker_id))
        for member in service.registry
    ]
    away = [server_status(service, server) for server in servers if server.worker_id not in service.registry]
    return FleetStatus(
        controller_id=service.controller_id,
        epoch=service.epoch,
        version=service.registry.version,
        uptime_s=service.uptime_s,
        workers=tuple(sorted(present + away, key=lambda worker: (worker.url, worker.worker_id))),
    )


def server_status(service: ControllerService, server: Server) -> WorkerStatus:
    """One registered server, present or away."""
    member = service.registry.get(server.worker_id)
    if member is not None:
        return _present(service, member, server.problem)
    return WorkerStatus(
        worker_id=server.worker_id,
        url=server.registration.url,
        kind="openai",
        model_names=server.registration.model_names,
        ready=False,
        away=True,
        load=WorkerLoad(),
        silent_s=None if server.heard_s is None else service.now() - server.heard_s,
        problem=server.problem,
        speed=server.registration.speed,
    )


def worker_status(service: ControllerService, member: Member) -> WorkerStatus:
    """One worker of ours."""
    return _present(service, member, None)


def _present(
    service: ControllerService, member: Member, problem: str | None, circuit: CircuitStatus | None = None
) -> WorkerStatus:
    worker = member.worker
    silent_s = max(0.0, service.now() - member.heard_s)
    return WorkerStatus(
        worker_id=worker.worker_id,
        url=worker.url,
        kind=worker.kind,
        model_names=tuple(model.id for model in worker.models),
        ready=worker.ready,
        draining=member.draining,
        load=member.load,
        overdue=silent_s > _OVERDUE_INTERVALS * service.heartbeat_interval_s,
        silent_s=silent_s,
        problem=problem,
        speed=worker.speed,
        circuit=circuit or CircuitStatus(),
    )
