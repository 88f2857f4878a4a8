"""Whether a server can be examined at all: it is there, lets us in, and answers for the model."""

import json
import re
from typing import Any, Final

from chatfleet.core.errors import ConfigurationError
from chatfleet.doctor.client import Answer, Client, Failed, Unreachable
from chatfleet.doctor.context import CHAT_PATH, user

_MODELS_PATH: Final = "/models"
_SHOWN_NAMES: Final = 20
_NO_CHAT: Final = re.compile(r"not a chat model|support (?:the )?chat", re.IGNORECASE)
_VERSION: Final = re.compile(r"/v\d+(/.*)?$")


async def must_be_there(client: Client) -> None:
    """Asks for the models and for one chat completion. A client without a model gets the first that is listed.

    Raises ConfigurationError, which says why, when the server cannot be reached, does not know the key or the model,
    or answers to a chat what is no JSON.
    """
    try:
        listed = await client.send(client.request("GET", _MODELS_PATH))
        names = _names(listed)
        if not client.model:
            _must_let_in(client, listed)
            client.model = _first(client, listed, names)
        asked = json.dumps({"model": client.model, "messages": user("Hello!"), "max_tokens": 1}).encode()
        answer = await client.send(client.request("POST", CHAT_PATH, asked))
    except (Unreachable, Failed) as exc:
        raise ConfigurationError(
            f"{client.base_url} does not answer. {exc} Is the server running, and is that its base URL?"
            f"{_better_url(client)}"
        ) from exc
    _must_let_in(client, answer)
    if listed.status == answer.status == 404 and not _is_about_model(client, answer):
        raise ConfigurationError(
            f"There is no {client.base_url}{CHAT_PATH}: status 404, {answer.start()}{_better_url(client)}"
        )
    _must_be_json(client, answer)
    if answer.status in (400, 404) and _is_about_model(client, answer):
        raise ConfigurationError(
            f"{client.base_url} has no model {client.model!r}: status {answer.status}, "
            f"{answer.error_message() or answer.start()}{_others(client, names)}"
        )


def _must_let_in(client: Client, answer: Answer) -> None:
    if answer.status not in (401, 403):
        return
    wrong = "does not know this API key" if client.with_key else "wants an API key"
    raise ConfigurationError(
        f"{client.base_url} {wrong}: status {answer.status}, {answer.start()}\nSet {client.key_variable}, or give "
        "--api-key."
    )


def _must_be_json(client: Client, answer: Answer) -> None:
    try:
        json.loads(answer.body)
    except ValueError:
        raise ConfigurationError(
            f"{client.base_url}{CHAT_PATH} does not answer with JSON: {_seen(answer)}{_better_url(client)}"
        ) from None


def _is_about_model(client: Client, answer: Answer) -> bool:
    """Whether an error says that there is no such model. One that does not chat may do other things."""
    message, param = answer.error_message(), answer.error_param()
    named = re.search(rf"(?<![\w-]){re.escape(client.model)}(?![\w-])", message) is not None
    return param in ("", "model") and (named or param == "model") and not _NO_CHAT.search(message)


def _first(client: Client, listed: Answer, names: list[str] | None) -> str:
    if names:
        return names[0]
    if names is not None:
        raise ConfigurationError(f"{client.base_url} lists no model. Give one with --model.")
    raise ConfigurationError(
        f"{client.base_url}{_MODELS_PATH} gives no list of models: {_seen(listed)}"
        f"{_better_url(client)}\nIf it has no such list, give a model with --model."
    )


def _names(listed: Answer) -> list[str] | None:
    """None where it is no list."""
    try:
        cards: Any = json.loads(listed.body)["data"]
        return [str(card["id"]) for card in cards] if listed.status == 200 else None
    except (ValueError, LookupError, TypeError):
        return None


def _seen(answer: Answer) -> str:
    where = answer.headers.get("location")
    return f"status {answer.status}, {answer.start()}" + (f"\nIt leads to {where!r}." if where else "")


def _better_url(client: Client) -> str:
    if client.base_url.endswith("/v1"):
        return ""
    return f"\nA base URL usually ends with /v1: try --base-url {_VERSION.sub('', client.base_url)}/v1"


def _others(client: Client, names: list[str] | None) -> str:
    if not names:
        return ""
    if client.model in names:
        return "\nIt lists it all the same."
    return f"\nIt lists {', '.join(names[:_SHOWN_NAMES])}: give one of them with --model."
