"""`chatfleet serve`: a whole fleet on this machine, supervised, in one command."""

import os
import secrets
import socket
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from chatfleet.cli.greeting import Start, open_door, snippets
from chatfleet.cli.local_fleet import LocalFleet, published, run_folder
from chatfleet.cli.options import settings_command
from chatfleet.cli.parts import NOT_SHARED, as_environment, controller_part, gateway_parts, worker_parts
from chatfleet.core.errors import ConfigurationError
from chatfleet.core.settings import setting
from chatfleet.gateway.settings import EndpointSettings
from chatfleet.supervisor.decisions import Supervision
from chatfleet.supervisor.log import FleetLog, LogConsole
from chatfleet.supervisor.supervisor import Supervisor
from chatfleet.worker.settings import EngineSettings

CONTROLLER_PORT: Final = 21001
_LOOPBACK: Final = "127.0.0.1"


class ServeSettings(EndpointSettings, EngineSettings):
    models: list[str] = setting(
        [],
        "GGUF files, folders (safetensors or OpenVINO IR) or Hugging Face ids. Without any: the bundled model.",
        "Model",
    )
    drain_timeout: float = setting(
        30.0, "Seconds that requests get to finish in when it is told to stop.", "When things fail", ge=0, le=86400
    )
    workers_per_model: int = setting(1, "Workers that share the requests for a model.", "Model", ge=1, le=256)

    def named_models(self) -> list[tuple[str | None, tuple[str, ...]]]:
        """Each model and the names that it is served under. Raises ConfigurationError unless these are clear."""
        from chatfleet.worker.model_source import default_name

        models: list[str | None] = [*self.models] or [None]
        if len(models) == 1 and self.model_names:
            return [(models[0], tuple(dict.fromkeys(self.model_names)))]
        if self.model_names and len(self.model_names) != len(models):
            raise ConfigurationError(
                f"--model-name is given {len(self.model_names)} times for {len(models)} models. Give one name per "
                "model, in the same order, or none."
            )
        names = self.model_names or [default_name(model, self.engine) for model in models]
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise ConfigurationError(
                f"{count} models would be served as {name!r}. Give each a name of its own: --model-name NAME, once per "
                "model, in the same order. For several workers of one model there is --workers-per-model."
            )
        return [(model, (name,)) for model, name in zip(models, names, strict=True)]


def _serve(given: dict[str, Any]) -> None:
    """Serve models on port 8000 and show how to call them. Without MODEL: the bundled one."""
    sys.exit(_run(ServeSettings.load(**given)))


def _run(settings: ServeSettings) -> int:
    """The exit status. Raises ConfigurationError before anything is started."""
    from chatfleet.http.server import base_url, listen
    from chatfleet.http.tls import leaf_certificate

    models = settings.named_models()
    with_key = bool(settings.keys())
    with_tls = settings.tls() is not None
    certificate = None if settings.ssl_certfile is None else leaf_certificate(settings.ssl_certfile)
    console = LogConsole()
    with ExitStack() as stack:
        endpoint = stack.enter_context(listen(settings.host, settings.port))
        control = stack.enter_context(_control_socket())
        url = base_url(settings.host, endpoint.getsockname()[1], tls=with_tls)
        controller_url = base_url(_LOOPBACK, control.getsockname()[1])
        token = secrets.token_hex(32)
        folder = stack.enter_context(run_folder())
        access = as_environment({"fleet_token": token})
        member = as_environment({"fleet_token": token, "controller_urls": [controller_url]})
        parts = [
            controller_part(control, access, None if folder is None else folder / "controller.json"),
            *worker_parts(settings, models, member, workers_per_model=settings.workers_per_model),
            *gateway_parts(settings, endpoint, member, folder),
        ]
        log = FleetLog(console, [part.name for part in parts])
        if warning := open_door(settings):
            log.say(warning)
        if folder is None and settings.processes > 1:
            log.say(NOT_SHARED)
        local = LocalFleet(url, controller_url, token, os.getpid(), time.time(), certificate)
        _publish(stack, folder, local, log)

        def greet(names: tuple[str, ...]) -> None:
            console.show(snippets(url, names, with_key=with_key, certfile=settings.ssl_certfile))

        start = Start(console, log, greet, time.monotonic())
        stack.callback(start.close)

        def watch(supervision: Supervision, now: float) -> float | None:
            if supervision.stopping:
                endpoint.close()  # who connects once the gateway has closed it too is refused, and does not wait
            return start.watch(supervision, now)

        return Supervisor(parts, log, watch).run()


def _control_socket() -> socket.socket:
    """On the usual port of a controller, or any other when something has that."""
    from chatfleet.http.server import listen

    try:
        return listen(_LOOPBACK, CONTROLLER_PORT)
    except ConfigurationError:
        return listen(_LOOPBACK, 0)


def _publish(stack: ExitStack, folder: Path | None, fleet: LocalFleet, log: FleetLog) -> None:
    try:
        if folder is None:
            raise OSError("no folder can be made for it")
        stack.enter_context(published(folder, fleet))
    except OSError as exc:
        log.say(
            f"This run cannot be recorded ({exc}), so `chatfleet chat` and `chatfleet status` have to be told its "
            "URLs. XDG_RUNTIME_DIR may name a folder for it."
        )


serve = settings_command(ServeSettings, _serve)
