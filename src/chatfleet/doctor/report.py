"""Results for programs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from chatfleet.doctor.client import Client
from chatfleet.doctor.context import Check
from chatfleet.doctor.runner import Result


def list_as_json(checks: Sequence[Check]) -> list[dict[str, str]]:
    return [{"name": check.name, "group": check.group, "title": check.title} for check in checks]


def as_json(client: Client, results: Sequence[Result]) -> dict[str, Any]:
    """`request` is a curl command without the key; null where the check passed."""
    return {
        "base_url": client.base_url,
        "model": client.model,
        **counts(results),
        "results": [
            {
                "name": result.check.name,
                "group": result.check.group,
                "title": result.check.title,
                "outcome": result.outcome,
                "reason": result.reason or None,
                "request": curl(client, result),
                "requests": result.requests,
                "seconds": round(result.seconds, 3),
            }
            for result in results
        ],
    }


def counts(results: Sequence[Result]) -> dict[str, int]:
    """How many passed, failed and are unsupported."""
    found = Counter(result.outcome for result in results)
    return {"passed": found["pass"], "failed": found["fail"], "unsupported": found["unsupported"]}


def curl(client: Client, result: Result) -> str | None:
    """The request that shows what is wrong, for a shell; None where the check passed."""
    if result.request is None:
        return None
    return result.request.as_curl(client.key_variable if client.with_key else None)
