"""`chatfleet worker`: one model on one port."""

from typing import Any

import uvloop
from rich.console import Console

from chatfleet.cli.options import settings_command
from chatfleet.cli.part import begin_part
from chatfleet.worker.settings import WorkerSettings


def _worker(given: dict[str, Any]) -> None:
    """Serve one model over OpenAI's API, alone or as a part of a fleet."""
    announce = begin_part(_print)
    from chatfleet.worker.app import run_worker
    from chatfleet.worker.model_source import load_served_model

    settings = WorkerSettings.load(**given)
    settings.listening_token(settings.host)  # what is wrong with it is said before anything is fetched
    model = load_served_model(settings)
    uvloop.run(run_worker(settings, model, announce))


def _print(url: str, names: tuple[str, ...]) -> None:
    Console(highlight=False, soft_wrap=True).print(f"Serving {', '.join(names)} on {url}/v1", markup=False)


worker = settings_command(WorkerSettings, _worker)
