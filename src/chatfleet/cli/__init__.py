"""The `chatfleet` command, one module per subcommand."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from chatfleet.cli import chat, controller, doctor, drain, fleet, gateway, models, serve, worker
from chatfleet.core.errors import ConfigurationError

app = typer.Typer(
    name="chatfleet",
    help="Serve language models behind one OpenAI-compatible endpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve.serve)
app.command("gateway")(gateway.gateway)
app.command("worker")(worker.worker)
app.command("controller")(controller.controller)
app.command("register")(fleet.register)
app.command("unregister")(fleet.unregister)
app.command("drain")(drain.drain)
app.command("status")(fleet.status)
app.command("models")(models.models)
app.command("chat")(chat.chat)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        from chatfleet import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command. A ConfigurationError is printed as one message, and the exit status is 2."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except ConfigurationError as exc:
        Console(stderr=True).print(f"[bold red]Error:[/] {escape(str(exc))}", highlight=False, soft_wrap=True)
        sys.exit(2)
