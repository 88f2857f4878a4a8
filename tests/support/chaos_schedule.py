"""What goes wrong in a chaos run, and when: drawn from a seed before anything is started."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """Names of things that go wrong, as the report has them."""

    KILL_WORKER = "worker killed"
    END_WORKER = "worker told to stop"
    FREEZE_WORKER = "worker frozen"
    KILL_ENGINE = "engine killed"
    FREEZE_ENGINE = "engine frozen"
    RESET = "connection reset"
    HALF_FRAME = "half a frame"
    GARBAGE = "garbage frame"
    IDLE_GARBAGE = "garbage on an idle connection"
    KILL_GATEWAY = "gateway killed"
    END_GATEWAY = "gateway told to stop"
    FREEZE_GATEWAY = "gateway frozen"
    KILL_CONTROLLER = "controller killed"
    END_CONTROLLER = "controller told to stop"
    FREEZE_CONTROLLER = "controller frozen"
    SHORT_BLACKOUT = "all workers killed and started again"
    LONG_BLACKOUT = "all workers gone past the deadline"


BLACKOUTS: Final = (Kind.SHORT_BLACKOUT, Kind.LONG_BLACKOUT)
WORKER_KINDS: Final = (Kind.KILL_WORKER, Kind.END_WORKER, Kind.FREEZE_WORKER, Kind.KILL_ENGINE, Kind.FREEZE_ENGINE)
WIRE_KINDS: Final = (Kind.RESET, Kind.RESET, Kind.HALF_FRAME, Kind.GARBAGE, Kind.IDLE_GARBAGE)
GATEWAY_KINDS: Final = (Kind.END_GATEWAY, Kind.END_GATEWAY, Kind.FREEZE_GATEWAY, Kind.KILL_GATEWAY)
CONTROLLER_KINDS: Final = (Kind.KILL_CONTROLLER, Kind.END_CONTROLLER, Kind.FREEZE_CONTROLLER)


@dataclass(frozen=True, slots=True)
class Incident:
    """`at_s` seconds after the beginning, to the worker, gateway or controller with the number `target`; `draw` is
    for whatever else is left to chance."""

    at_s: float
    kind: Kind
    target: int
    draw: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Mean seconds between incidents of a sort; `blackouts` is whether all workers go at once, each way once."""

    workers_s: float
    wire_s: float
    gateways_s: float
    controllers_s: float
    blackouts: bool


def draw_schedule(
    seed: int, seconds: float, rates: Rates, *, workers: int, gateways: int, controllers: int
) -> list[Incident]:
    """All incidents of a run, in order: the same for the same arguments."""
    rng = random.Random(f"schedule {seed}")
    incidents = [
        *_sort_of(rng, WORKER_KINDS, rates.workers_s, seconds, workers),
        *_sort_of(rng, WIRE_KINDS, rates.wire_s, seconds, workers),
        *_sort_of(rng, GATEWAY_KINDS, rates.gateways_s, seconds, gateways),
        *_sort_of(rng, CONTROLLER_KINDS, rates.controllers_s, seconds, controllers),
    ]
    if rates.blackouts:
        kinds = rng.sample(BLACKOUTS, k=len(BLACKOUTS))
        for number, kind in enumerate(kinds):
            at_s = seconds * (0.2 + 0.4 * number + 0.2 * rng.random())
            incidents.append(Incident(at_s, kind, 0, rng.getrandbits(32)))
    return sorted(incidents, key=lambda incident: incident.at_s)


def _sort_of(
    rng: random.Random, kinds: Sequence[Kind], mean_s: float, seconds: float, targets: int
) -> Iterator[Incident]:
    """Each kind comes up once before any comes up again."""
    deck: list[Kind] = []
    at_s = mean_s * rng.uniform(0.2, 1.0)
    while at_s < seconds:
        deck = deck or rng.sample(kinds, k=len(kinds))
        yield Incident(at_s, deck.pop(), rng.randrange(targets), rng.getrandbits(32))
        at_s += mean_s * rng.uniform(0.5, 1.5)
