"""Speaking to all controllers of a fleet, as every command does that changes or shows it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import aiohttp
import typer
from rich.console import Console
from rich.markup import escape

from chatfleet.cli.fleet_table import Report, printable
from chatfleet.cli.local_fleet import find_controllers
from chatfleet.core.access import FleetMember
from chatfleet.http.control import ControllerClient, ControllerError, new_session

_ADVICE = {
    None: " Is `chatfleet serve` or `chatfleet controller` running there? Choose another with --controller-url.",
    401: " Give the fleet's token, with --fleet-token-file or in CHATFLEET_FLEET_TOKEN.",
}

ControllerUrls = Annotated[
    list[str] | None,
    typer.Option("--controller-url", help="Controller; repeatable. Default: this machine's.", show_default=False),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--fleet-token-file", help="File with the fleet's token (or set CHATFLEET_FLEET_TOKEN).", show_default=False
    ),
]

console = Console(highlight=False, soft_wrap=True)

T = TypeVar("T")


def access(controller_url: list[str] | None, fleet_token_file: Path | None) -> tuple[list[str], str | None]:
    """The controllers to speak to and the fleet's token: as given, from the environment, or of `chatfleet serve`."""
    given = {"controller_urls": controller_url, "fleet_token_file": fleet_token_file}
    member = FleetMember.load(**{name: value for name, value in given.items() if value})
    return find_controllers(member.controller_urls, member.token())


def errors_in(answers: Iterable[tuple[str, object]]) -> list[ControllerError]:
    return [answer for _, answer in answers if isinstance(answer, ControllerError)]


def fail_with(errors: Sequence[ControllerError]) -> None:
    """Print each error, with what to do about it, and end the command with status 1; nothing without errors."""
    for error in errors:
        _print_error("[bold red]Error:[/]", f"{error}{_ADVICE.get(error.status, '')}")
    if errors:
        raise typer.Exit(1)


def warn_of(errors: Sequence[ControllerError]) -> None:
    """Print errors in spite of which the command has done what it should."""
    for error in errors:
        _print_error("[bold yellow]Warning:[/]", str(error))


def fail(message: str) -> NoReturn:
    """Print an error, and end the command with status 1."""
    _print_error("[bold red]Error:[/]", message)
    raise typer.Exit(1)


def _print_error(label: str, message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"{label} {escape(printable(message))}")


def reports_of(urls: Sequence[str], token: str | None) -> list[Report]:
    return gather(urls, token, ControllerClient.status)


def gather(
    urls: Sequence[str], token: str | None, call: Callable[[ControllerClient], Awaitable[T]]
) -> list[tuple[str, T | ControllerError]]:
    """What each controller answers, or why it does not."""
    return asyncio.run(_gather(urls, token, call))


async def _gather(
    urls: Sequence[str], token: str | None, call: Callable[[ControllerClient], Awaitable[T]]
) -> list[tuple[str, T | ControllerError]]:
    async def answer(session: aiohttp.ClientSession, url: str) -> tuple[str, T | ControllerError]:
        try:
            return url, await call(ControllerClient(session, url, token))
        except ControllerError as exc:
            return url, exc

    async with new_session() as session:
        return await asyncio.gather(*(answer(session, url) for url in urls))
