"""The parts of a fleet as commands: what each is told, and how."""

import json
import socket
import sys
from collections.abc import Iterable, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from chatfleet.core.settings import ENV_PREFIX, Settings
from chatfleet.gateway.settings import EndpointSettings, GatewaySettings
from chatfleet.gateway.siblings import place_environments
from chatfleet.observability.sharing import file_environment
from chatfleet.supervisor.parts import Part, Role
from chatfleet.worker.settings import EngineSettings

NOT_SHARED: Final = (
    "No folder can be made for what the gateway's processes share, so /metrics tells of the one that answers only. "
    "XDG_RUNTIME_DIR may name a folder for it."
)

_MAX_NAME_CHARS = 24
_CONTROLLER_GRACE_S: Final = 15.0
_GATEWAY_PARTING_S: Final = 5.0
_WORKER_PARTING_S: Final = 10.0
"""What a part may take beyond its --drain-timeout: to break off what is left, and to end its engine."""


def chatfleet(*arguments: str) -> tuple[str, ...]:
    """The command, as the process that we are runs it."""
    return (sys.executable, "-P", "-m", "chatfleet", *arguments)  # -P: no module of the current folder shadows ours


def controller_part(listener: socket.socket, fleet: Mapping[str, str], state_file: Path | None) -> Part:
    values = {"fd": listener.fileno(), "port": listener.getsockname()[1], "state_file": state_file}
    return Part(
        name="controller",
        role=Role.CONTROLLER,
        command=chatfleet("controller"),
        grace_s=_CONTROLLER_GRACE_S,
        environment={**as_environment(values), **fleet},
        fds=(listener.fileno(),),
    )


def gateway_parts(
    settings: EndpointSettings, listener: socket.socket, fleet: Mapping[str, str], folder: Path | None
) -> list[Part]:
    """As many as `settings.processes`, on one socket. Several share their metrics by files in `folder`, where there is
    one, and answers by a socket there."""
    shared = folder if settings.processes > 1 else None
    given = given_values(settings, GatewaySettings.model_fields.keys() - {"processes"})
    values = {**given, "host": settings.host, "port": listener.getsockname()[1], "fd": listener.fileno()}
    return [
        Part(
            name=name,
            role=Role.GATEWAY,
            command=chatfleet("gateway"),
            grace_s=settings.drain_timeout + _GATEWAY_PARTING_S,
            environment={
                **as_environment(values),
                **fleet,
                **({} if shared is None else file_environment(shared, name)),
                **place,
            },
            fds=(listener.fileno(),),
        )
        for name, place in zip(
            distinct(["gateway"] * settings.processes), place_environments(shared, settings.processes), strict=True
        )
    ]


def worker_parts(
    settings: EngineSettings,
    models: Iterable[tuple[str | None, tuple[str, ...]]],
    fleet: Mapping[str, str],
    *,
    workers_per_model: int,
) -> list[Part]:
    """Workers of each model, which is given with the names that it is served under."""
    each = [model for model in models for _ in range(workers_per_model)]
    shared = {"memory_share": settings.memory_share / max(1, len(each))}  # they look at what is free all at once
    given = given_values(settings, EngineSettings.model_fields.keys()) | shared
    labels = distinct(["controller", "gateway", *(_label(names[0]) for _, names in each)])[2:]
    return [
        Part(
            name=label,
            role=Role.WORKER,
            command=chatfleet("worker") if model is None else chatfleet("worker", model),
            grace_s=settings.drain_timeout + _WORKER_PARTING_S,
            environment={**as_environment({**given, "model_names": list(names), "port": 0}), **fleet},
        )
        for label, (model, names) in zip(labels, each, strict=True)
    ]


def _label(name: str) -> str:
    """A model's name without the organisation that a Hugging Face id begins with, and short."""
    return name.rstrip("/").rpartition("/")[2][:_MAX_NAME_CHARS] or "worker"


def distinct(names: Iterable[str]) -> list[str]:
    """The names, each further one of the same with its number: a, a#2, a#3."""
    taken: dict[str, None] = {}
    for name in names:
        numbered = (f"{name}#{number}" for number in count(2))
        taken[next(free for free in chain([name], numbered) if free not in taken)] = None
    return list(taken)


def given_values(settings: Settings, names: Iterable[str]) -> dict[str, Any]:
    """The settings among `names` that were given on the command line or in the environment."""
    return {name: getattr(settings, name) for name in names if name in settings.model_fields_set}


def as_environment(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings as the environment variables that give them to a process; None leaves one out."""
    return {f"{ENV_PREFIX}{name.upper()}": _text(value) for name, value in values.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value, default=_text)
