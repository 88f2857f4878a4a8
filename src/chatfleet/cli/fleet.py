"""`chatfleet register`, `unregister` and `status`: what a person does with a running fleet."""

import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from chatfleet.cli.controllers import (
    ControllerUrls,
    TokenFile,
    access,
    console,
    errors_in,
    fail_with,
    gather,
    reports_of,
)
from chatfleet.cli.fleet_table import Report, fleet_tables, printable
from chatfleet.core.errors import ConfigurationError
from chatfleet.core.fleet import FleetStatus, ServerRegistration
from chatfleet.http.control import ControllerClient, ControllerError

_REFRESH_S = 1.0

T = TypeVar("T")


def register(
    url: Annotated[str, typer.Argument(help="Where it listens, such as http://10.0.0.7:8000.")],
    model_name: Annotated[
        list[str] | None,
        typer.Option(help="Model to use of those it serves; repeatable. Default: all.", show_default=False),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key that it wants.", show_default=False)
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The key itself; others on this machine can see it.", show_default=False)
    ] = None,
    allowed_field: Annotated[
        list[str] | None,
        typer.Option(help="Request field it may get beyond OpenAI's; repeatable.", show_default=False),
    ] = None,
    speed: Annotated[
        float, typer.Option(help="How fast it is beside other workers of its models: 2 gets twice the requests.")
    ] = 1.0,
    controller_url: ControllerUrls = None,
    fleet_token_file: TokenFile = None,
) -> None:
    """Make any OpenAI-compatible server a worker: vLLM, SGLang, llama.cpp, Ollama, TGI, another fleet."""
    key = _api_key(api_key, api_key_env)
    try:
        registration = ServerRegistration(
            url=url,
            model_names=tuple(model_name or ()),
            api_key=key,
            allowed_fields=tuple(allowed_field or ()),
            speed=speed,
        )
    except ValidationError as exc:
        wrong = exc.errors(include_url=False, include_input=False)[0]
        field = str(wrong["loc"][0]).replace("_", "-")
        flags = {"url": "URL", "model-names": "--model-name", "allowed-fields": "--allowed-field", "speed": "--speed"}
        name = flags.get(field, "--api-key")
        raise ConfigurationError(f"{name}: {wrong['msg'].removeprefix('Value error, ')}.") from None
    urls, token = access(controller_url, fleet_token_file)
    _tell_all(
        urls,
        token,
        lambda client: client.register_server(registration),
        lambda controller, server: (
            f"Registered {server.url} with {controller}. It serves: {', '.join(server.model_names) or 'no model yet'}"
        ),
    )


def unregister(
    url: Annotated[str, typer.Argument(help="The URL it was registered with.")],
    controller_url: ControllerUrls = None,
    fleet_token_file: TokenFile = None,
) -> None:
    """Take a registered server out of the fleet."""
    urls, token = access(controller_url, fleet_token_file)
    _tell_all(
        urls,
        token,
        lambda client: client.unregister_server(url),
        lambda controller, _: f"Unregistered {url} from {controller}",
    )


def status(
    controller_url: ControllerUrls = None,
    fleet_token_file: TokenFile = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON and end.")] = False,
) -> None:
    """Show workers, models, load and what is wrong. At a terminal it stays up to date until Ctrl-C."""
    urls, token = access(controller_url, fleet_token_file)
    if as_json:
        _print_json(reports_of(urls, token))
        return
    screen = Console(highlight=False)
    if screen.is_terminal and not screen.is_dumb_terminal and not once:
        _show_live(screen, urls, token)
        return
    reports = reports_of(urls, token)
    screen.print(fleet_tables([(url, report) for url, report in reports if isinstance(report, FleetStatus)]))
    fail_with(errors_in(reports))


def _show_live(screen: Console, urls: Sequence[str], token: str | None) -> None:
    try:
        with Live(fleet_tables(reports_of(urls, token)), console=screen, auto_refresh=False) as live:
            while True:
                time.sleep(_REFRESH_S)
                live.update(fleet_tables(reports_of(urls, token)), refresh=True)
    except KeyboardInterrupt:
        pass


def _print_json(reports: Sequence[Report]) -> None:
    """One object per controller, so that a script sees which of them did not answer."""
    rows: list[dict[str, Any]] = [
        {"url": url, "status": report.model_dump(mode="json"), "error": None}
        if isinstance(report, FleetStatus)
        else {"url": url, "status": None, "error": str(report)}
        for url, report in reports
    ]
    print(json.dumps({"controllers": rows}, indent=2))
    if any(row["error"] for row in rows):
        raise typer.Exit(1)


def _api_key(given: str | None, variable: str | None) -> str | None:
    if variable is None:
        return given
    if given is not None:
        raise ConfigurationError("Give --api-key or --api-key-env, not both.")
    if not (key := os.environ.get(variable, "").strip()):
        raise ConfigurationError(f"--api-key-env: {variable} is not set in the environment, or is empty.")
    return key


def _tell_all(
    urls: Sequence[str],
    token: str | None,
    call: Callable[[ControllerClient], Awaitable[T]],
    show: Callable[[str, T], str],
) -> None:
    """Call every controller and print a line for each: `show(controller_url, answer)`, or on stderr why it failed.

    Ends the command with status 1 when one of them failed.
    """
    answers = gather(urls, token, call)
    for url, answer in answers:
        if not isinstance(answer, ControllerError):
            console.print(escape(printable(show(url, answer))))
    fail_with(errors_in(answers))
