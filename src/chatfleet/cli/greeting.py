"""What `chatfleet serve` shows while it starts, and once it serves."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from chatfleet.core.access import is_loopback
from chatfleet.gateway.settings import EndpointSettings
from chatfleet.supervisor.decisions import Supervision
from chatfleet.supervisor.log import FleetLog
from chatfleet.supervisor.parts import Role

REMINDER_S: Final = 10.0
_REFRESH_S: Final = 0.5


def served_models(supervision: Supervision) -> tuple[str, ...]:
    """The names of all models whose workers have announced themselves, in order."""
    workers = (state for state in supervision.states.values() if state.part.role is Role.WORKER)
    announced = (state.announcement.models for state in workers if state.announcement is not None)
    return tuple(dict.fromkeys(name for models in announced for name in models))


def awaited(supervision: Supervision) -> list[str]:
    """The parts that keep the fleet from being complete: each must have announced itself, and every gateway that it
    serves what the workers do."""
    models = set(served_models(supervision))
    return [
        name
        for name, state in supervision.states.items()
        if state.announcement is None
        or (state.part.role is Role.GATEWAY and not models.issubset(state.announcement.models))
    ]


class Start:
    """Watches a fleet until it is complete, and then calls `greet` with the names that it serves, once.

    A terminal shows all the while what is awaited, a log gets a line about it every ten seconds.
    """

    def __init__(self, console: Console, log: FleetLog, greet: Callable[[tuple[str, ...]], None], now: float) -> None:
        self._log = log
        self._greet = greet
        self._begun_at = now
        self._remind_at = now + REMINDER_S
        self._greeted = self._told_of_stop = False
        self._status = (
            Status("Starting", console=console) if console.is_terminal and not console.is_dumb_terminal else None
        )
        if self._status is not None:
            self._status.start()

    def watch(self, supervision: Supervision, now: float) -> float | None:
        if supervision.stopping:
            self.close()
            if not self._told_of_stop and supervision.status == 0:
                self._told_of_stop = True
                self._log.say("Stopping; another Ctrl-C kills everything at once.")
            return None
        if self._greeted:
            return None
        names = awaited(supervision)
        if not names:
            self.close()
            self._greeted = True
            self._greet(served_models(supervision))
            return None
        waiting = f"Waiting for {', '.join(names)} ({now - self._begun_at:.0f} s)"
        if self._status is not None:
            self._status.update(escape(waiting))
            return now + _REFRESH_S
        if now >= self._remind_at:
            self._remind_at = now + REMINDER_S
            self._log.say(waiting)
        return self._remind_at

    def close(self) -> None:
        """Show nothing more. Idempotent."""
        if self._status is not None:
            self._status.stop()
            self._status = None


def snippets(url: str, models: Sequence[str], *, with_key: bool, certfile: Path | None = None) -> str:
    """How to call what is served, ready to paste, as rich markup. A key is taken from where `chatfleet chat` looks.

    `certfile` is the certificate of an https endpoint, which clients may not trust yet.
    """
    model = json.dumps(models[0])
    body = json.dumps({"model": models[0], "messages": [{"role": "user", "content": "What is ChatFleet?"}]})
    header = ' \\\n    -H "Authorization: Bearer $CHATFLEET_API_KEY"' if with_key else ""
    imports = "  import os\n" if with_key else ""
    key = 'os.environ["CHATFLEET_API_KEY"]' if with_key else '"none"'
    curl = (
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json'{header} \\\n    -d {shlex.quote(body)}\n"
    )
    sdk = (
        f"{imports}"
        "  from openai import OpenAI\n"
        f'  client = OpenAI(base_url="{url}/v1", api_key={key})\n'
        "  answer = client.chat.completions.create(\n"
        f'      model={model}, messages=[{{"role": "user", "content": "What is ChatFleet?"}}]\n'
        "  )\n"
        "  print(answer.choices[0].message.content)\n"
    )
    trust = "" if certfile is None else _how_to_trust(certfile.expanduser().absolute())
    return (
        f"\n[bold green]Serving {escape(', '.join(models))}[/] on [bold]{url}/v1[/]   "
        f"(documentation: {url}/docs, Ctrl-C stops)\n\n"
        f"{escape(trust)}[bold]curl[/]\n{escape(curl)}\n"
        f"[bold]OpenAI SDK[/]\n{escape(sdk)}\n"
        f"[bold]Terminal[/]\n  {escape(_command())} chat --base-url {url}/v1\n"
    )


def _how_to_trust(certfile: Path) -> str:
    path = shlex.quote(str(certfile))
    return (
        "Clients must trust the certificate, and call a name that it has. Where it is signed by nobody they know:\n"
        f"  export CURL_CA_BUNDLE={path} SSL_CERT_FILE={path}\n\n"
    )


def _command() -> str:
    """What to type for this command: its path where the shell would not find it, as in a virtual environment."""
    if shutil.which("chatfleet"):
        return "chatfleet"
    script = Path(sys.executable).with_name("chatfleet")
    if script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return shlex.quote(str(script))


def open_door(settings: EndpointSettings) -> str | None:
    """A warning where strangers may use the endpoint. Raises ConfigurationError."""
    if settings.keys() or is_loopback(settings.host):
        return None
    return (
        f"Warning: with --host {settings.host} and without an API key, whoever reaches the port may use it. Set "
        "CHATFLEET_API_KEYS or --api-keys-file to ask for keys."
    )
