"""`chatfleet models`: what a running fleet serves, and what each engine can do."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from chatfleet.cli.controllers import ControllerUrls, TokenFile, access, errors_in, fail_with, gather, warn_of
from chatfleet.cli.fleet_table import printable
from chatfleet.core.fleet import FleetSnapshot, FleetStatus, WorkerStatus
from chatfleet.engines.registry import BACKENDS, install_command, is_installed
from chatfleet.http.control import ControllerClient, ControllerError

Fleet = tuple[FleetStatus, FleetSnapshot]


def models(
    controller_url: ControllerUrls = None,
    fleet_token_file: TokenFile = None,
    capabilities: Annotated[
        bool, typer.Option("--capabilities", help="Show what each engine honours, and which are installed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """List the models that a running fleet serves, or what each engine can do."""
    screen = Console(highlight=False)
    if capabilities:
        if as_json:
            print(json.dumps(capability_rows(), indent=2))
        else:
            screen.print(_capability_table())
        return
    urls, token = access(controller_url, fleet_token_file)
    answers = gather(urls, token, _fleet)
    errors = errors_in(answers)
    if len(errors) == len(answers):
        fail_with(errors)
    warn_of(errors)
    rows = model_rows(answer for _, answer in answers if not isinstance(answer, ControllerError))
    if as_json:
        print(json.dumps({"models": rows}, indent=2))
    else:
        screen.print(_model_table(rows))


async def _fleet(client: ControllerClient) -> Fleet:
    return await client.status(), await client.snapshot()


def model_rows(fleets: Iterable[Fleet]) -> list[dict[str, Any]]:
    """Each model of the fleets once, by name: how many workers have it, how many of them answer now, and the least
    context length that one of them has, in tokens; None where none says."""
    workers: dict[str, WorkerStatus] = {}
    lengths: dict[str, list[int]] = {}
    for status, snapshot in fleets:
        workers |= {worker.worker_id: worker for worker in status.workers}
        for info in (info for worker in snapshot.workers for info in worker.models):
            lengths.setdefault(info.id, []).extend([] if info.context_length is None else [info.context_length])
    return [
        {
            "id": name,
            "workers": len(having),
            "ready": sum(worker.ready and not worker.away and not worker.draining for worker in having),
            "context_length": min(lengths.get(name, []), default=None),
        }
        for name in sorted({name for worker in workers.values() for name in worker.model_names})
        if (having := [worker for worker in workers.values() if name in worker.model_names])
    ]


def _model_table(rows: list[dict[str, Any]]) -> RenderableType:
    if not rows:
        return Text("No model yet: no worker has joined. Start one with `chatfleet worker MODEL --controller-url URL`.")
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("Model", overflow="fold")
    for header in ("Workers", "Ready", "Context"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        context = row["context_length"]
        ready = Text(str(row["ready"]), "green" if row["ready"] else "red")
        table.add_row(printable(row["id"]), str(row["workers"]), ready, "-" if context is None else str(context))
    return table


def capability_rows() -> dict[str, Any]:
    """Columns of the table by title, each with its rows in order, and which engines are installed here."""
    from chatfleet.engines.features import ENGINES

    return {
        "engines": {column.title: column.rows() for column in ENGINES},
        "installed": {engine: is_installed(engine) for engine in BACKENDS},
    }


def _capability_table() -> RenderableType:
    shown = capability_rows()
    columns: dict[str, dict[str, str]] = shown["engines"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("", no_wrap=True)
    for title in columns:
        table.add_column(title.replace(" ", "\n"), overflow="fold")
    for name in next(iter(columns.values())):
        table.add_row(name, *(rows[name] for rows in columns.values()))
    installed: dict[str, bool] = shown["installed"]
    words = (
        Text(f"{engine}: {'installed' if there else f'not installed here. To install it: {install_command(engine)}'}")
        for engine, there in installed.items()
    )
    return Group(table, Text(), *words)
