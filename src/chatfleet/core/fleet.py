"""What the components of a fleet tell each other: workers, models, snapshots and the events of a watch.

Fields that a component does not know are ignored, so that a fleet may be upgraded part by part.
"""

import re
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

HEARTBEAT_INTERVAL_S: Final = 5.0
EXPIRY_S: Final = 15.0
ALIVE_INTERVAL_S: Final = 2.0
"""How often a watch says that it lives, and how busy the workers are."""

FLEET_PATH: Final = "/fleet"
WORKERS_PATH: Final = f"{FLEET_PATH}/workers"
DRAIN_PATH: Final = f"{WORKERS_PATH}/{{worker_id}}/drain"
SERVERS_PATH: Final = f"{FLEET_PATH}/servers"
SNAPSHOT_PATH: Final = f"{FLEET_PATH}/snapshot"
STATUS_PATH: Final = f"{FLEET_PATH}/status"
WATCH_PATH: Final = f"{FLEET_PATH}/watch"
CIRCUITS_PATH: Final = f"{FLEET_PATH}/circuits"

MAX_MODEL_ID_CHARS: Final = 512
MAX_LOADS: Final = 1024
"""Of how many workers one event tells the load."""

REPORT_CIRCUITS_S: Final = 5.0
"""How often a gateway tells of its circuits while some are not closed."""

MAX_CIRCUITS_TOLD: Final = 1024

LOAD_HEADER: Final = "x-chatfleet-load"
"""Of every inference answer of a worker: its load as `WorkerLoad.to_header` writes it. The request that is answered
counts as running, since to its gateway it still is."""

RECOVERY_HEADER: Final = "x-chatfleet-recovery"
"""What a gateway asks of a worker of ours for the case that the worker dies: RECOVERY_IDS for the ids of the tokens
within a stream (docs/reliability.md has their form), RECOVERY_RESUME for that and for a stream to go on where another
worker's has ended."""

RECOVERY_IDS: Final = "ids"
RECOVERY_RESUME: Final = "resume"

PRIORITY_HEADER: Final = "x-chatfleet-priority"
"""What a gateway says of a request's place in a worker's queue: an integer, of which lower ones come first, as in
vLLM; 0 where there is none."""

_HEADER_VALUE = re.compile(r"[\x21-\x7e]{1,4096}")
_LOAD_VALUE = re.compile(rb"([0-9]{1,6}),([0-9]{1,6})")


def _base_url(value: str) -> str:
    """An http or https URL without query, fragment or user, and without a slash at the end."""
    parts = urlsplit(value)
    try:
        port_is_right = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        port_is_right = False
    plain = value.isprintable() and not any(part in value for part in ("?", "#", "@", "\\", "/../", "/./"))
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right or not plain or " " in value:
        raise ValueError("must be a URL such as http://10.0.0.2:21002")
    return value.rstrip("/")


def _header_safe(value: str) -> str:
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError("must be printable ASCII without spaces")
    return value


BaseUrl = Annotated[str, Field(max_length=2048), AfterValidator(_base_url)]
WorkerId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]
ModelId = Annotated[str, Field(min_length=1, max_length=MAX_MODEL_ID_CHARS)]
ApiKey = Annotated[str, AfterValidator(_header_safe)]
WorkerKind = Literal["chatfleet", "openai"]
Speed = Annotated[float, Field(ge=0.01, le=100)]
"""How fast a worker is beside the others, which are 1."""

GoneReason = Literal["deregistered", "expired", "replaced"]


class FleetModel(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()


class ModelInfo(FleetModel):
    """A model as /v1/models shows it. `context_length` is in tokens, `created` is Unix time in seconds."""

    id: ModelId
    created: int = 0
    owned_by: str = Field(default="chatfleet", max_length=512)
    context_length: int | None = None


class WorkerInfo(FleetModel):
    """A worker as the gateways need it.

    A worker of ours (`kind` "chatfleet") has a new `worker_id` in every process life; any other OpenAI-compatible
    server ("openai") keeps its own over restarts, `api_key` is what it wants as a bearer token, and `allowed_fields`
    are request fields that it may get beyond the ones we know. `models` is empty only while `ready` is false. `speed`
    is what its operator says of it.
    """

    worker_id: WorkerId
    url: BaseUrl
    kind: WorkerKind = "chatfleet"
    models: Annotated[tuple[ModelInfo, ...], Field(max_length=1024)]
    ready: bool = True
    api_key: ApiKey | None = Field(default=None, repr=False)
    allowed_fields: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=256)] = ()
    speed: Speed = 1.0


class WorkerLoad(FleetModel):
    """Choices in generation and in the queue of a worker."""

    running: int = Field(default=0, ge=0)
    waiting: int = Field(default=0, ge=0)

    def to_header(self) -> bytes:
        """`running,waiting` in decimal digits."""
        return b"%d,%d" % (self.running, self.waiting)


def read_load(value: bytes) -> int | None:
    """Running and waiting together, of the value of a LOAD_HEADER; None where it is none. A microsecond at most."""
    found = _LOAD_VALUE.fullmatch(value)
    return None if found is None else int(found[1]) + int(found[2])


class Heartbeat(FleetModel):
    """Registration and sign of life in one: a controller that knows nothing of the worker learns all of it."""

    worker: WorkerInfo
    load: WorkerLoad = WorkerLoad()


class Registration(FleetModel):
    """A controller's answer to a heartbeat: who it is, and how often it wants the next one (seconds). `drain` is for a
    worker that is to finish what it has and end."""

    controller_id: str
    epoch: int
    heartbeat_interval_s: float = Field(gt=0)
    expiry_s: float = Field(gt=0)
    drain: bool = False


class ServerRegistration(FleetModel):
    """Any OpenAI-compatible server, as `chatfleet register` describes it.

    Without `model_names` it serves all that its /v1/models lists, else those of them that are named.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    url: BaseUrl
    model_names: Annotated[tuple[ModelId, ...], Field(max_length=1024)] = ()
    api_key: ApiKey | None = Field(default=None, repr=False)
    allowed_fields: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=256)] = ()
    speed: Speed = 1.0


class Circuit(FleetModel):
    """A gateway's circuit breaker before a worker which fails requests, and how many have failed in a row. Half-open,
    it lets one at a time try the worker; open, none."""

    state: Literal["open", "half_open"]
    failures: int = Field(ge=0)


class CircuitReport(FleetModel):
    """All circuits of a gateway process that are not closed, by worker id."""

    gateway_id: WorkerId
    circuits: Annotated[dict[WorkerId, Circuit], Field(max_length=MAX_CIRCUITS_TOLD)]


class CircuitStatus(FleetModel):
    """How many gateway processes have an open or half-open circuit before a worker, and the most failures in a row that
    one of them has seen."""

    open: int = 0
    half_open: int = 0
    failures: int = 0


class WorkerStatus(FleetModel):
    """A worker for the eyes of a person: no key, and how long ago it was heard of (seconds).

    `overdue` is one whose heartbeat has not come when it should: it may be dead, and will be gone at its expiry. `away`
    is a registered server that does not answer: it gets no requests until it does. `draining` is a worker that gets no
    new requests, and ends when it has finished those it has. `problem` is a sentence on what is wrong, where that is
    known.
    """

    worker_id: WorkerId
    url: str
    kind: WorkerKind
    model_names: tuple[str, ...]
    ready: bool
    overdue: bool = False
    away: bool = False
    draining: bool = False
    load: WorkerLoad
    silent_s: float | None
    problem: str | None = None
    speed: float = 1.0
    circuit: CircuitStatus = CircuitStatus()


class FleetStatus(FleetModel):
    controller_id: str
    epoch: int
    version: int
    uptime_s: float
    workers: tuple[WorkerStatus, ...]


Loads = dict[str, WorkerLoad]
"""What workers said of their load in heartbeats that came lately, by worker id; at most MAX_LOADS of them."""


class FleetSnapshot(FleetModel):
    """All workers of one controller. `epoch` is new at each of its starts, `version` counts its changes from there;
    within an epoch a worker that is silent for `expiry_s` is left out."""

    type: Literal["snapshot"] = "snapshot"
    controller_id: str
    epoch: int
    version: int
    expiry_s: float
    workers: tuple[WorkerInfo, ...]
    loads: Loads = {}


class WorkerChanged(FleetModel):
    """A worker that is new, or different from before."""

    type: Literal["changed"] = "changed"
    version: int
    worker: WorkerInfo


class WorkerGone(FleetModel):
    type: Literal["gone"] = "gone"
    version: int
    worker_id: WorkerId
    reason: GoneReason


class ControllerAlive(FleetModel):
    """No change, but what workers last said of their load; and so a silent connection is known to be dead."""

    type: Literal["alive"] = "alive"
    version: int
    loads: Loads = {}


FleetChange = WorkerChanged | WorkerGone
FleetEvent = Annotated[FleetSnapshot | WorkerChanged | WorkerGone | ControllerAlive, Field(discriminator="type")]
FLEET_EVENT: Final[TypeAdapter[FleetEvent]] = TypeAdapter(FleetEvent)
"""Reads one event of a watch. The first is a FleetSnapshot; versions then count up by one, else there is a gap."""
