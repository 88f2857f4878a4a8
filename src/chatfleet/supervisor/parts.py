"""What a supervisor keeps running: the command of each part, and how it is stopped."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Role(Enum):
    """In the order of stopping: the gateway finishes its requests while there are workers, and a worker leaves the
    fleet while there is a controller."""

    GATEWAY = "gateway"
    WORKER = "worker"
    CONTROLLER = "controller"


STOP_ORDER = tuple(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A process to keep running.

    `name` is unique, and stands before its lines in the log. One that still runs `grace_s` seconds after SIGTERM is
    killed. `environment` is added to ours, without our own
    settings; `fds` are descriptors of ours that it inherits under the same numbers.
    """

    name: str
    role: Role
    command: tuple[str, ...]
    grace_s: float
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    fds: tuple[int, ...] = ()
