"""`chatfleet gateway`: the endpoint that clients see, in one process or several."""

import sys
from typing import Any

import uvloop
from rich.markup import escape

from chatfleet.cli.greeting import open_door
from chatfleet.cli.local_fleet import run_folder
from chatfleet.cli.options import settings_command
from chatfleet.cli.part import begin_part
from chatfleet.cli.parts import NOT_SHARED, gateway_parts
from chatfleet.gateway.settings import GatewaySettings
from chatfleet.supervisor.decisions import Supervision
from chatfleet.supervisor.log import FleetLog, LogConsole
from chatfleet.supervisor.parts import Role
from chatfleet.supervisor.supervisor import Supervisor


class _Lines:
    """Two lines for a person, each once: that it listens, and what it serves."""

    def __init__(self, console: LogConsole) -> None:
        self._console = console
        self._listening = self._serving = False

    def announce(self, url: str, models: tuple[str, ...]) -> None:
        if models and not self._serving:
            self._serving = self._listening = True
            self._console.show(escape(f"Serving {', '.join(models)} on {url}/v1"))
        elif not self._listening:
            self._listening = True
            self._console.show(f"Gateway on {url}, waiting for workers")

    def warn(self, warning: str) -> None:
        self._console.show(warning)

    def watch(self, supervision: Supervision, now: float) -> None:
        """The same of several processes: what all of them serve."""
        announcements = supervision.announcements(Role.GATEWAY)
        if announcements is not None and not supervision.stopping:
            served = set.intersection(*(set(announcement.models) for announcement in announcements))
            self.announce(announcements[0].url, tuple(name for name in announcements[0].models if name in served))


def _gateway(given: dict[str, Any]) -> None:
    """Serve the models of a fleet behind one OpenAI-compatible endpoint."""
    console = LogConsole()
    lines = _Lines(console)
    announce = begin_part(lines.announce)
    settings = GatewaySettings.load(**given)
    if announce == lines.announce and (warning := open_door(settings)):
        lines.warn(warning)
    if settings.processes > 1:
        sys.exit(_supervise(settings, console, lines))
    from chatfleet.gateway.app import run_gateway

    uvloop.run(run_gateway(settings, announce))


def _supervise(settings: GatewaySettings, console: LogConsole, lines: _Lines) -> int:
    """The exit status. Raises ConfigurationError before anything is started."""
    from chatfleet.http.server import listen

    settings.keys()  # what is wrong with keys, token or certificate is said once, and not by every process
    settings.token()
    settings.tls()
    with listen(settings.host, settings.port, settings.fd) as listener, run_folder("gateway") as folder:
        parts = gateway_parts(settings, listener, {}, folder)
        log = FleetLog(console, [part.name for part in parts])
        if folder is None:
            log.say(NOT_SHARED)

        def watch(supervision: Supervision, now: float) -> None:
            if supervision.stopping:
                listener.close()  # who connects once all processes have closed it too is refused, and does not wait
            lines.watch(supervision, now)

        return Supervisor(parts, log, watch).run()


gateway = settings_command(GatewaySettings, _gateway)
