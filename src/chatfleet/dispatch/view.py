"""What a gateway knows of the fleet: the merged word of all controllers, and what it does when they fall silent.

Pure: no clock and no sockets. Times are monotonic seconds that the caller gives.

A worker goes by its own deregistration, or when every controller that knew it has been without it for long enough
and it does not answer a probe of the gateway's own. So a controller that restarts empty empties nobody.
"""

import math
from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

from chatfleet.core.fleet import (
    ControllerAlive,
    FleetEvent,
    FleetSnapshot,
    Loads,
    ModelInfo,
    WorkerChanged,
    WorkerGone,
    WorkerInfo,
)
from chatfleet.dispatch.breaker import Breaker, CircuitState
from chatfleet.observability.circuits import MAX_CIRCUITS, CircuitNumbers

REPROBE_S: Final = 5.0
SMOOTHING_S: Final = 20.0
"""Over about how long the reports of a worker's load are averaged. Each is of one moment, and old at the next: gateways
that take the last one for the truth run to the same worker together (docs/routing.md has the numbers)."""

REPORT_S: Final = 30.0
"""How long a report counts when no other follows: a worker that looks busy must not stay without requests for that."""

MODEL_MEMORY_S: Final = 3600.0
"""How long a model without workers is "unavailable", before it is "unknown"."""

_MAX_DEPARTED: Final = 10_000


class Gap(Exception):
    """Events are missing: the watch must begin again, with a snapshot."""


class Lossable(Protocol):
    """A request at a worker."""

    def worker_lost(self) -> None:
        """The worker was found dead. It may have gone without a word: its connections would stay silent for ever."""


class Worker:
    """A worker in the view, the requests of this gateway that it has, and whether it is well with them.

    `on_circuit` is called after each change of its circuit breaker, with it and the state before.
    """

    def __init__(
        self, info: WorkerInfo, on_circuit: "Callable[[Worker, CircuitState], None]" = lambda worker, before: None
    ) -> None:
        self.info = info
        self.circuit = Breaker(lambda before: on_circuit(self, before))
        self.has_failures = False
        """Whether the last request that is known of has failed; only then a success is worth telling."""
        self.is_probed = False
        """Whether a probe of it is under way."""
        self._requests: dict[Lossable, None] = {}
        self._others = 0.0
        self._reported_at = -math.inf
        self.doubts: dict[str, float | None] = {}
        """By controller that has known it: None while it does, else when its absence begins to count."""

    def failed(self, now: float, *, unreachable: bool = False) -> None:
        """It could not be reached (`unreachable`), or broke off."""
        self.has_failures = True
        self.circuit.failed(now, unreachable=unreachable)

    def succeeded(self) -> None:
        """It has answered. Need not be told while it has no failures."""
        self.has_failures = False
        self.circuit.succeeded()

    @property
    def in_flight(self) -> int:
        """Requests of this gateway."""
        return len(self._requests)

    def begin(self, request: Lossable) -> None:
        """Count a request, until its `end`."""
        self._requests[request] = None
        if self.circuit.state:
            self.circuit.began(request)

    def end(self, request: Lossable) -> None:
        """Idempotent."""
        self._requests.pop(request, None)
        if self.circuit.state:
            self.circuit.ended(request)

    def lose(self) -> None:
        """Tell all requests that it is dead."""
        for request in list(self._requests):
            request.worker_lost()

    def report(self, choices: int, now: float) -> None:
        """The worker has said how many choices it runs and holds waiting, this gateway's among them.

        What goes beyond the requests that this gateway has there now is the work of others, of which an average over
        SMOOTHING_S is kept. Believed of our own workers only.
        """
        if self.info.kind == "chatfleet":
            others = max(0, choices - len(self._requests))
            self._others += (others - self._others) * (1 - math.exp((self._reported_at - now) / SMOOTHING_S))
            self._reported_at = now

    def load(self, now: float) -> float:
        """Requests of this gateway, and choices of others as far as they are known."""
        return len(self._requests) + (self._others if now - self._reported_at < REPORT_S else 0.0)

    def doubtful_from(self) -> float | None:
        """When it may be probed for its life; None while a controller vouches for it."""
        latest = 0.0
        for absent_from in self.doubts.values():
            if absent_from is None:
                return None
            latest = max(latest, absent_from)
        return latest

    def probe_at(self) -> float:
        """When it is to be probed, for its life or its circuit; infinity while that is not known."""
        if self.is_probed:
            return math.inf
        doubtful_from = self.doubtful_from()
        return self.circuit.probe_at if doubtful_from is None else min(doubtful_from, self.circuit.probe_at)


class FleetView:
    """Every known worker, and those that can be chosen, by model."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._by_model: dict[str, list[Worker]] = {}
        self._positions: dict[str, tuple[str, int, int]] = {}  # by source: controller id, epoch, version
        self._departed: dict[str, None] = {}  # deregistered ids, which another controller may still name
        self._left_at: dict[str, float] = {}
        self._opened: dict[tuple[str, str], int] = {}  # circuits, by model and URL
        self.on_circuit: Callable[[Worker, CircuitState], None] = lambda worker, before: None
        """Called after each change of a known worker's circuit, with the state before."""

    def models(self) -> dict[str, ModelInfo]:
        """The models that can be asked now, by name in alphabetical order."""
        return {
            name: next(model for model in workers[0].info.models if model.id == name)
            for name, workers in sorted(self._by_model.items())
        }

    def only_model(self) -> str | None:
        """The model that is meant when none is named: there is just one, under whatever names our workers give it."""
        served = {
            tuple(model.id for model in worker.info.models[: 1 if worker.info.kind == "chatfleet" else None])
            for workers in self._by_model.values()
            for worker in workers
        }
        first = served.pop() if len(served) == 1 else ()
        return first[0] if len(first) == 1 else None

    def workers_of(self, model: str) -> list[Worker]:
        """The workers that can be asked for a model now."""
        return self._by_model.get(model, [])

    def serves(self, model: str) -> bool:
        return model in self._by_model

    def is_away(self, model: str, now: float) -> bool:
        """Whether a model is known and has no worker now: all are starting or restarting, or the last one has left,
        not long ago."""
        if self.serves(model):
            return False
        left_at = self._left_at.get(model)
        return (left_at is not None and now - left_at < MODEL_MEMORY_S) or any(
            model == info.id for worker in self._workers.values() for info in worker.info.models
        )

    def apply(self, source: str, event: FleetEvent, now: float) -> None:
        """Take in an event of the controller at `source`. Raises Gap when one before it is missing."""
        if isinstance(event, FleetSnapshot):
            self._take_snapshot(source, event, now)
        else:
            self._advance(source, event)
            if isinstance(event, ControllerAlive):
                self._take_loads(event.loads, now)
                return
            if isinstance(event, WorkerChanged):
                self._vouch(source, event.worker)
            else:
                self._take_leave(source, event, now)
        self._index(now)

    def worker_ids(self) -> set[str]:
        """Of all known workers."""
        return set(self._workers)

    def doubtful(self, now: float) -> list[Worker]:
        """The workers to probe now: no controller vouches for them, or requests to them fail."""
        return [worker for worker in self._workers.values() if worker.probe_at() <= now]

    def next_doubt(self) -> float:
        """When `doubtful` has something next; infinity while that is not known."""
        return min((worker.probe_at() for worker in self._workers.values()), default=math.inf)

    def probed(self, worker: Worker, *, alive: bool, now: float, refused: bool = False) -> bool:
        """The outcome of a probe; whether the worker is gone now. A controller that vouches for it keeps it.

        `refused` says that its host answered for it. What it may still be doing is left alone then: a worker that
        finishes its last requests refuses new connections, and those of a dead one end by themselves.
        """
        worker.circuit.probed(alive=alive, now=now)
        doubtful_from = worker.doubtful_from()
        if doubtful_from is None or doubtful_from > now:
            return False
        if alive:
            worker.doubts = dict.fromkeys(worker.doubts, now + REPROBE_S)
            return False
        self._workers.pop(worker.info.worker_id, None)
        self._index(now)
        if not refused:
            worker.lose()
        return True

    def troubled(self) -> list[Worker]:
        """The workers whose circuit is not closed."""
        return [worker for worker in self._workers.values() if worker.circuit.state]

    def circuits(self) -> list[CircuitNumbers]:
        """For /metrics, in any order; of a fleet with more than MAX_CIRCUITS workers those that have trouble."""
        worst_first = sorted(self._workers.values(), key=lambda worker: -worker.circuit.state)
        return [
            *(CircuitNumbers(model, url, opened=opened) for (model, url), opened in self._opened.items()),
            *(
                CircuitNumbers(_model_label(worker.info), worker.info.url, state=int(worker.circuit.state))
                for worker in islice(worst_first, MAX_CIRCUITS)
            ),
        ]

    def _circuit_changed(self, worker: Worker, before: CircuitState) -> None:
        if self._workers.get(worker.info.worker_id) is not worker:  # it is gone, and its last requests fail
            return
        if worker.circuit.state is CircuitState.OPEN:
            key = _model_label(worker.info), worker.info.url
            if key not in self._opened and len(self._opened) >= MAX_CIRCUITS:
                key = "", ""
            self._opened[key] = self._opened.get(key, 0) + 1
        self.on_circuit(worker, before)

    def _advance(self, source: str, event: WorkerChanged | WorkerGone | ControllerAlive) -> None:
        if source not in self._positions:
            raise Gap
        controller_id, epoch, version = self._positions[source]
        expected = version if isinstance(event, ControllerAlive) else version + 1
        if event.version != expected:
            raise Gap
        self._positions[source] = controller_id, epoch, event.version

    def _take_snapshot(self, source: str, snapshot: FleetSnapshot, now: float) -> None:
        before = self._positions.get(source)
        is_new_epoch = before is None or before[:2] != (snapshot.controller_id, snapshot.epoch)
        self._positions[source] = snapshot.controller_id, snapshot.epoch, snapshot.version
        for info in snapshot.workers:
            self._vouch(source, info)
        self._take_loads(snapshot.loads, now)
        named = {info.worker_id for info in snapshot.workers}
        for worker_id, worker in self._workers.items():
            if worker_id in named or source not in worker.doubts:
                continue
            if is_new_epoch:
                worker.doubts[source] = now + snapshot.expiry_s
            elif worker.doubts[source] is None:
                worker.doubts[source] = now

    def _take_loads(self, loads: Loads, now: float) -> None:
        for worker_id, load in loads.items():
            if (worker := self._workers.get(worker_id)) is not None:
                worker.report(load.running + load.waiting, now)

    def _vouch(self, source: str, info: WorkerInfo) -> None:
        if info.worker_id in self._departed:
            return
        worker = self._workers.get(info.worker_id)
        if worker is None:
            worker = self._workers[info.worker_id] = Worker(info, self._circuit_changed)
        worker.info = info
        worker.doubts[source] = None

    def _take_leave(self, source: str, gone: WorkerGone, now: float) -> None:
        worker = self._workers.get(gone.worker_id)
        if worker is None or source not in worker.doubts:
            return
        if gone.reason != "deregistered":  # by the controller's judgement: the probe has the last word
            worker.doubts[source] = now
        elif worker.info.kind == "chatfleet":  # its own word, whatever other controllers still believe
            del self._workers[gone.worker_id]
            self._departed[gone.worker_id] = None
            if len(self._departed) > _MAX_DEPARTED:
                del self._departed[next(iter(self._departed))]
        else:
            del worker.doubts[source]
            if not worker.doubts:
                del self._workers[gone.worker_id]

    def _index(self, now: float) -> None:
        before = self._by_model
        self._by_model = {}
        for worker in self._workers.values():
            if worker.info.ready:
                for model in worker.info.models:
                    self._by_model.setdefault(model.id, []).append(worker)
        self._left_at.update(dict.fromkeys(before.keys() - self._by_model.keys(), now))
        self._left_at = {
            name: left_at
            for name, left_at in self._left_at.items()
            if name not in self._by_model and now - left_at < MODEL_MEMORY_S
        }


def _model_label(info: WorkerInfo) -> str:
    """The one model that a worker serves, under its first name if it is ours; empty if there are several."""
    return info.models[0].id if len(info.models) == 1 or (info.models and info.kind == "chatfleet") else ""
