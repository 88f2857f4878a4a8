"""`chatfleet controller`: the registry of a fleet."""

from typing import Any

import uvloop
from rich.console import Console

from chatfleet.cli.options import settings_command
from chatfleet.cli.part import begin_part
from chatfleet.controller.settings import ControllerSettings

console = Console(highlight=False, soft_wrap=True)


def _controller(given: dict[str, Any]) -> None:
    """Keep track of a fleet's workers, and tell its gateways of them."""
    announce = begin_part(lambda url, _models: console.print(f"Controller on {url}"))
    from chatfleet.controller.app import run_controller

    settings = ControllerSettings.load(**given)
    uvloop.run(run_controller(settings, lambda url: announce(url, ())))


controller = settings_command(ControllerSettings, _controller)
