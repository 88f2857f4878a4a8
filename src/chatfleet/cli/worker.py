"""`chatfleet worker` and `chatfleet serve`: one model on one port."""

import logging
from typing import Any

import uvloop
from rich.console import Console

from chatfleet.cli.options import settings_command
from chatfleet.worker.settings import WorkerSettings

SERVE_PORT = 8000

console = Console(highlight=False, soft_wrap=True)


def _worker(given: dict[str, Any]) -> None:
    """Serve one model over OpenAI's API, on its own."""
    _run(given, lambda url, names: console.print(f"Serving {', '.join(names)} on {url}/v1"))


def _serve(given: dict[str, Any]) -> None:
    """Serve a model on port 8000 and show how to call it. Without MODEL: the bundled one."""
    _run(given, _print_snippets)


def _run(given: dict[str, Any], announce: Any) -> None:
    from chatfleet.worker.app import run_worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    settings = WorkerSettings.load(**given)
    uvloop.run(run_worker(settings, announce))


def _print_snippets(url: str, names: tuple[str, ...]) -> None:
    model = names[0]
    console.print(
        f"\n[bold green]Serving {model}[/] on [bold]{url}/v1[/]   (documentation: {url}/docs, Ctrl-C stops)\n\n"
        "[bold]curl[/]\n"
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' \\\n"
        f"""    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is ChatFleet?"}}]}}'\n\n"""
        "[bold]OpenAI SDK[/]\n"
        "  from openai import OpenAI\n"
        f'  client = OpenAI(base_url="{url}/v1", api_key="none")\n'
        "  answer = client.chat.completions.create(\n"
        f'      model="{model}", messages=\\[{{"role": "user", "content": "What is ChatFleet?"}}]\n'
        "  )\n"
        "  print(answer.choices\\[0].message.content)\n\n"
        "[bold]Terminal[/]\n"
        f"  chatfleet chat --base-url {url}/v1\n"
    )


worker = settings_command(WorkerSettings, _worker)
serve = settings_command(WorkerSettings, _serve, defaults={"port": SERVE_PORT})
