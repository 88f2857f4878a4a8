"""Runs checks: a few at a time, each within its time, and none is stopped by another's failure."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from chatfleet.doctor.client import Client, Failed, Request, Unreachable, Unsupported
from chatfleet.doctor.context import Check, Context
from chatfleet.doctor.first_look import must_be_there

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

    Raises ConfigurationError when the server cannot be examined; see `must_be_there`. Cancelling it ends what runs.
    """
    async with client:
        await must_be_there(client)
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
