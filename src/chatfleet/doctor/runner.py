"""Runs checks: a few at a time, each within its time, and none is stopped by another's failure."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from chatfleet.core.errors import ConfigurationError
from chatfleet.doctor.client import Answer, Client, Failed, Request, Unreachable, Unsupported
from chatfleet.doctor.context import CHAT_PATH, Check, Context, chat_body

PARALLEL: Final = 4
CHECK_TIMEOUTS: Final = 3
"""A check may take this many times as long as one of its requests may."""

Outcome = Literal["pass", "fail", "unsupported"]


@dataclass(frozen=True)
class Result:
    """`reason` and `request`, the last that was sent, are there unless it passed."""

    check: Check
    outcome: Outcome
    seconds: float
    requests: int
    reason: str = ""
    request: Request | None = None


async def examine(client: Client, checks: Sequence[Check], on_result: Callable[[Result], None]) -> list[Result]:
    """The results, in the order of `checks`; each is told to `on_result` when it is there.

    A client without a model gets the first that is listed.

    Raises ConfigurationError when the server cannot be reached, or does not know the key or the model. Cancelling it
    ends what runs.
    """
    async with client:
        await _must_be_there(client)
        places = asyncio.Semaphore(PARALLEL)

        async def one(check: Check) -> Result:
            async with places:
                result = await _result(client, check)
            on_result(result)
            return result

        return await asyncio.gather(*map(one, checks))


async def _result(client: Client, check: Check) -> Result:
    context = Context(client, check)
    started = time.monotonic()
    outcome: Outcome = "fail"
    reason = ""
    try:
        async with asyncio.timeout(CHECK_TIMEOUTS * client.timeout_s):
            await check.run(context)
        outcome = "pass"
    except Unsupported as exc:
        outcome, reason = "unsupported", str(exc)
    except (Failed, Unreachable) as exc:
        reason = str(exc)
    except TimeoutError:
        reason = f"The check is not over after {CHECK_TIMEOUTS * client.timeout_s:g} s."
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        reason = f"The answer does not have the form that the reference gives it ({type(exc).__name__}: {exc})."
    request = context.requests[-1] if context.requests and outcome != "pass" else None
    return Result(check, outcome, time.monotonic() - started, len(context.requests), reason, request)


async def _must_be_there(client: Client) -> None:
    try:
        answer = await client.send(client.request("GET", "/models"))
        _must_let_in(client, answer)
        names = _names(answer)
        if not client.model:
            client.model = _first(client, names)
        elif names and client.model not in names:
            body = json.dumps({"model": client.model, **chat_body()}).encode()
            asked = await client.send(client.request("POST", CHAT_PATH, body))
            if asked.status == 404:
                raise ConfigurationError(
                    f"{client.base_url} has no model {client.model!r}. It lists {', '.join(names[:20])}: give one of "
                    "them with --model."
                )
    except (Unreachable, Failed) as exc:
        raise ConfigurationError(
            f"{client.base_url} does not answer. {exc} Is the server running, and is that its base URL? It usually "
            "ends with /v1."
        ) from exc


def _must_let_in(client: Client, answer: Answer) -> None:
    if answer.status in (401, 403):
        wrong = "does not know this API key" if client.with_key else "wants an API key"
        raise ConfigurationError(f"{client.base_url} {wrong}. Set OPENAI_API_KEY, or give --api-key.")
    if answer.status == 404 and not client.base_url.endswith("/v1"):
        raise ConfigurationError(
            f"There is no {client.base_url}/models. A base URL usually ends with /v1: try --base-url "
            f"{client.base_url}/v1"
        )


def _first(client: Client, names: list[str]) -> str:
    if not names:
        raise ConfigurationError(f"{client.base_url} lists no model. Give one with --model.")
    return names[0]


def _names(answer: Answer) -> list[str]:
    try:
        listed: Any = answer.json()["data"]
        return [str(card["id"]) for card in listed]
    except (Failed, LookupError, TypeError):
        return []
