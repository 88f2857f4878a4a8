"""`chatfleet chat`: talk to any OpenAI-compatible endpoint in the terminal."""

import os
import ssl
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from chatfleet.cli.local_fleet import find_endpoint, known_certificate

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletionMessageParam


def chat(
    base_url: Annotated[
        str | None,
        typer.Option(help="The endpoint, with /v1. Default: what `chatfleet serve` runs here.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Default: the first that the endpoint serves.")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Default: CHATFLEET_API_KEY or OPENAI_API_KEY, if set.", show_default=False)
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="Default: the endpoint's.")] = None,
) -> None:
    """Chat in the terminal, answers streaming. /reset starts over, /exit or Ctrl-D ends."""
    from openai import AuthenticationError, DefaultHttpxClient, OpenAI, OpenAIError

    from chatfleet.http.tls import pinned_context

    console = Console(highlight=False, soft_wrap=True)
    base_url = base_url or f"{find_endpoint()}/v1"
    known_key = os.environ.get("CHATFLEET_API_KEY") or os.environ.get("OPENAI_API_KEY")
    certificate = known_certificate(base_url)
    client = OpenAI(
        base_url=base_url,
        api_key=api_key or known_key or "none",
        http_client=None if certificate is None else DefaultHttpxClient(verify=pinned_context(certificate)),
    )
    try:
        model = model or client.models.list().data[0].id
    except AuthenticationError as exc:
        wrong = "does not know this API key" if api_key or known_key else "wants an API key"
        message = f"{base_url} {wrong}. Set CHATFLEET_API_KEY, or give --api-key."
        console.print(f"[bold red]Error:[/] {escape(message)}")
        raise typer.Exit(1) from exc
    except OpenAIError as exc:
        hint = "" if base_url.rstrip("/").endswith("/v1") else " A base URL usually ends with /v1."
        message = f"{base_url} does not answer: {str(exc).rstrip('.')}. Is `chatfleet serve` running?{hint}"
        if _is_distrust(exc):
            message = (
                f"The certificate of {base_url} is not trusted here: nobody known signed it, or it is for another name "
                "or time. Give the name that it is for, and set SSL_CERT_FILE to a file with it."
            )
        console.print(f"[bold red]Error:[/] {escape(message)}")
        raise typer.Exit(1) from exc
    except IndexError:
        console.print(f"[bold red]Error:[/] {base_url} serves no model.")
        raise typer.Exit(1) from None
    console.print(f"[dim]{escape(model)} at {base_url}. /reset starts over, /exit ends.[/]")
    opening: list[ChatCompletionMessageParam] = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    while True:
        try:
            line = console.input("[bold cyan]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line == "/exit":
            return
        if line == "/reset":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            answer = _answer(client, console, model, messages, temperature)
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def _is_distrust(error: BaseException | None) -> bool:
    """Whether a certificate is what it comes from."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _answer(
    client: "OpenAI",
    console: Console,
    model: str,
    messages: "list[ChatCompletionMessageParam]",
    temperature: float | None,
) -> str | None:
    """Print the answer as it comes and return it; None when it failed. Ctrl-C ends it where it is."""
    from openai import Omit, OpenAIError

    parts: list[str] = []
    try:
        with client.chat.completions.create(
            model=model,
            messages=messages,
            stream=True,
            temperature=Omit() if temperature is None else temperature,
        ) as stream:
            for chunk in stream:
                text = chunk.choices[0].delta.content if chunk.choices else None
                if text:
                    parts.append(text)
                    console.out(text, end="", highlight=False)
    except KeyboardInterrupt:
        console.print("[dim] (stopped)[/]", end="")
    except OpenAIError as exc:
        console.print(f"[bold red]Error:[/] {escape(str(exc))}")
        return None
    console.print()
    return "".join(parts)
