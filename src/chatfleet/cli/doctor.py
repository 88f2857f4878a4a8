"""`chatfleet doctor`: whether any OpenAI-compatible server does what OpenAI's reference says."""

import asyncio
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from chatfleet.cli.fleet_table import printable
from chatfleet.cli.local_fleet import find_endpoint, known_certificate
from chatfleet.core.errors import ConfigurationError

if TYPE_CHECKING:
    from chatfleet.doctor.client import Client
    from chatfleet.doctor.context import Check
    from chatfleet.doctor.runner import Result

_STYLES: Final = {"pass": "green", "fail": "bold red", "unsupported": "yellow"}


def doctor(
    base_url: Annotated[
        str | None,
        typer.Option(help="The endpoint, with /v1. Default: what `chatfleet serve` runs here.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Default: the first that the endpoint lists.", show_default=False)
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Default: CHATFLEET_API_KEY or OPENAI_API_KEY, if set.", show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A check or a group of them; repeatable. Default: all.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one request may take.", min=0.1, max=3600)] = 60.0,
    show_list: Annotated[bool, typer.Option("--list", help="List the checks and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Check any OpenAI-compatible server: one check per feature, and the request that shows what is wrong.

    Ends with status 0 when nothing failed, 1 when something did, 2 when the server cannot be examined.
    """
    from chatfleet.doctor import catalogue, client, report
    from chatfleet.http.tls import pinned_context

    screen = Console(highlight=False)
    checks = catalogue.chosen(only or [])
    if show_list:
        _print_list(screen, checks)
        return
    known_key = os.environ.get("CHATFLEET_API_KEY") or os.environ.get("OPENAI_API_KEY")
    base_url = base_url or f"{find_endpoint()}/v1"
    if not base_url.startswith(("http://", "https://")):
        raise ConfigurationError(f"--base-url {base_url}: it must begin with http:// or https://.")
    certificate = known_certificate(base_url)
    server = client.Client(
        base_url,
        model or "",
        api_key or known_key or None,
        timeout_s=timeout,
        verify=None if certificate is None else pinned_context(certificate),
    )
    results = asyncio.run(_examine(server, checks, quiet=as_json))
    if as_json:
        print(json.dumps(report.as_json(server, results), indent=2, ensure_ascii=False))
    else:
        _print_results(screen, server, results)
    if report.counts(results)["failed"]:
        raise typer.Exit(1)


async def _examine(server: "Client", checks: "Sequence[Check]", *, quiet: bool) -> "list[Result]":
    from chatfleet.doctor.runner import examine

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    screen = Console(stderr=True)
    quiet = quiet or not screen.is_terminal
    with Progress(*columns, console=screen, transient=True, disable=quiet) as progress:
        task = progress.add_task("Examining", total=len(checks))

        def show(result: "Result") -> None:
            progress.update(task, advance=1, description=f"{result.check.name}: {result.outcome}")

        return await examine(server, checks, show)


def _print_list(screen: Console, checks: "Sequence[Check]") -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("Check", no_wrap=True)
    table.add_column("What it holds the server to", overflow="fold")
    for check in checks:
        table.add_row(check.name, check.title)
    screen.print(table)


def _print_results(screen: Console, server: "Client", results: "Sequence[Result]") -> None:
    from chatfleet.doctor.report import counts, curl

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("Check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("What it holds the server to, or why not", overflow="fold")
    for result in results:
        said = printable(result.reason) if result.reason else result.check.title
        table.add_row(result.check.name, Text(result.outcome, _STYLES[result.outcome]), Text(said))
    screen.print(table)
    for result in results:
        if result.outcome == "fail":
            screen.print()
            screen.print(Text(f"{result.check.name}: {result.check.title}", "bold"))
            screen.print(Text(printable(result.reason)), soft_wrap=True)
            if (command := curl(server, result)) is not None:
                screen.print(Text(printable(command), "dim"), soft_wrap=True)
    found = counts(results)
    screen.print()
    screen.print(
        f"{server.model} at {server.base_url}: {found['passed']} passed, {found['failed']} failed, "
        f"{found['unsupported']} unsupported.",
        soft_wrap=True,
        markup=False,
    )
