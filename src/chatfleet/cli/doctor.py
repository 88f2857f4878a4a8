"""`chatfleet doctor`: whether any OpenAI-compatible server does what OpenAI's reference says."""

import asyncio
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from chatfleet.cli.fleet_table import printable
from chatfleet.cli.local_fleet import find_endpoint, known_certificate, running_fleets
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
        str | None,
        typer.Option(help="Default: OPENAI_API_KEY; CHATFLEET_API_KEY for what runs here.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A check or a group of them; repeatable. Default: all.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one request may take.", min=0.1, max=3600)] = 60.0,
    show_list: Annotated[bool, typer.Option("--list", help="List the checks and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results, or the list, as JSON.")] = False,
) -> None:
    """Check any OpenAI-compatible server: one check per feature, and the request that shows what is wrong.

    Ends with status 0 when nothing failed, 1 when something did, 2 when the server cannot be examined.
    """
    from chatfleet.doctor import catalogue, client, report
    from chatfleet.http.tls import pinned_context

    screen = Console(highlight=False)
    checks = catalogue.chosen(only or [])
    if show_list:
        if as_json:
            print(json.dumps(report.list_as_json(checks), indent=2))
        else:
            _print_list(screen, checks)
        return
    key_variable = _key_variable(base_url)
    base_url = base_url or f"{find_endpoint()}/v1"
    if not base_url.startswith(("http://", "https://")):
        raise ConfigurationError(f"--base-url {base_url}: it must begin with http:// or https://.")
    certificate = known_certificate(base_url)
    server = client.Client(
        base_url,
        model or "",
        api_key or os.environ.get(key_variable) or None,
        key_variable=key_variable,
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


def _key_variable(base_url: str | None) -> str:
    """The variable with the key for an endpoint. CHATFLEET_API_KEY goes to what runs here, and to nobody else."""
    ours = [urlsplit(fleet.url)[:2] for fleet in running_fleets()]
    is_ours = base_url is None or urlsplit(base_url)[:2] in ours
    has_own = "CHATFLEET_API_KEY" in os.environ or "OPENAI_API_KEY" not in os.environ
    return "CHATFLEET_API_KEY" if is_ours and has_own else "OPENAI_API_KEY"


def _print_list(screen: Console, checks: "Sequence[Check]") -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("Check", no_wrap=True)
    table.add_column("What it holds the server to")
    for check in checks:
        table.add_row(check.name, check.title)
    screen.print(table)


def _print_results(screen: Console, server: "Client", results: "Sequence[Result]") -> None:
    """A table of all, then why and with which request for what is unsupported and, last, for what failed."""
    from chatfleet.doctor.report import counts

    screen.print(_table(results))
    for outcome in ("unsupported", "fail"):
        for result in results:
            if result.outcome == outcome:
                _print_reason(screen, server, result)
    found = counts(results)
    screen.print()
    screen.print(
        f"{server.model} at {server.base_url}: {found['passed']} passed, {found['failed']} failed, "
        f"{found['unsupported']} unsupported.",
        soft_wrap=True,
        markup=False,
    )


def _table(results: "Sequence[Result]") -> Table:
    """The names below their groups, so that there is room for titles at 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("Check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("What it holds the server to")
    group = ""
    for result in results:
        if result.check.group != group:
            group = result.check.group
            table.add_row(Text(group, "bold"))
        name = result.check.name.removeprefix(f"{group}.")
        table.add_row(f"  {name}", Text(result.outcome, _STYLES[result.outcome]), Text(result.check.title))
    return table


def _print_reason(screen: Console, server: "Client", result: "Result") -> None:
    from chatfleet.doctor.report import curl

    screen.print()
    heading = Text(f"{result.check.name} (", "bold").append(result.outcome, _STYLES[result.outcome])
    screen.print(heading.append(f"): {result.check.title}"), soft_wrap=True)
    screen.print(Text(printable(" ".join(result.reason.split()))), soft_wrap=True)
    if (command := curl(server, result)) is not None:
        screen.print(Text(printable(command), "dim"), soft_wrap=True)
