"""Asking an OpenAI-compatible server which models it serves: bounded in time and size, without redirects."""

from collections.abc import Collection
from typing import Any, Final

import aiohttp
from pydantic_core import from_json

from chatfleet.core.fleet import MAX_MODEL_ID_CHARS, ModelInfo, ServerRegistration
from chatfleet.http.control import AnswerTooLarge, bearer, connection_problem, new_session, read_bounded

PROBE_TIMEOUT_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 1024 * 1024
MAX_MODELS: Final = 1024
_MAX_INT: Final = 2**53

_REFUSALS: Final = {
    401: "it wants an API key, or another one",
    403: "the API key may not list its models",
    404: "it has no /v1/models, so it is not OpenAI-compatible, or its URL is another one",
}


class ProbeFailed(Exception):
    """The server did not answer as an OpenAI-compatible server. The message says why, to follow its URL."""


def probe_session() -> aiohttp.ClientSession:
    """Connections for probes: any number at once, so that none waits for one that hangs, and a new one each time,
    since many servers close idle ones within one interval."""
    return new_session(aiohttp.TCPConnector(limit=0, force_close=True))


async def probe(session: aiohttp.ClientSession, server: ServerRegistration, timeout_s: float) -> tuple[ModelInfo, ...]:
    """The models that the server lists, all of them or those that are to be used. Raises ProbeFailed."""
    url = f"{server.url}/v1/models"
    headers = {**bearer(server.api_key), "accept": "application/json", "accept-encoding": "identity"}
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with session.get(url, headers=headers, timeout=timeout, allow_redirects=False) as response:
            if response.status != 200:
                raise ProbeFailed(_refusal(response.status))
            body = await read_bounded(response, MAX_ANSWER_BYTES)
    except TimeoutError as exc:
        raise ProbeFailed(f"it did not answer within {timeout_s:g} s") from exc
    except AnswerTooLarge as exc:
        raise ProbeFailed(f"its list of models is larger than {MAX_ANSWER_BYTES // 2**20} MB") from exc
    except aiohttp.ClientConnectorError as exc:
        raise ProbeFailed(f"it cannot be reached: {connection_problem(exc)}") from exc
    except (aiohttp.ClientError, OSError, ValueError) as exc:  # their texts may quote what the server sent
        raise ProbeFailed("the connection broke, or what it speaks is not HTTP") from exc
    return listed_models(body, server.model_names)


def listed_models(body: bytes, wanted: Collection[str]) -> tuple[ModelInfo, ...]:
    """The entries of an answer to /v1/models; with `wanted`, only those. Raises ProbeFailed."""
    try:
        answer = from_json(body)
    except ValueError as exc:
        raise ProbeFailed("it is not OpenAI-compatible: what it answers to /v1/models is not JSON") from exc
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise ProbeFailed("it is not OpenAI-compatible: its answer to /v1/models has no list 'data'")
    models: dict[str, ModelInfo] = {}
    for entry in entries:
        model_id = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(model_id, str) or not 0 < len(model_id) <= MAX_MODEL_ID_CHARS:
            raise ProbeFailed("it is not OpenAI-compatible: an entry of its /v1/models has no usable 'id'")
        if not wanted or model_id in wanted:
            models[model_id] = _model(model_id, entry)
    if len(models) > MAX_MODELS:
        raise ProbeFailed(f"it lists {len(models)} models, and {MAX_MODELS} fit; name those to use with --model-name")
    return tuple(models.values())


def _model(model_id: str, entry: dict[str, Any]) -> ModelInfo:
    owned_by = entry.get("owned_by")
    context_length = _whole(entry.get("max_model_len"))
    return ModelInfo(
        id=model_id,
        created=_whole(entry.get("created")) or 0,
        owned_by=owned_by[:MAX_MODEL_ID_CHARS] if isinstance(owned_by, str) else "",
        context_length=context_length or None,
    )


def _whole(value: object) -> int | None:
    """A count as servers send it: some write whole numbers as floats."""
    return int(value) if isinstance(value, int | float) and 0 <= value <= _MAX_INT else None


def _refusal(status: int) -> str:
    if 300 <= status < 400:
        return f"it answers with a redirect ({status}), and none is followed; use the URL it leads to"
    return f"{_REFUSALS.get(status, 'it does not list its models')} ({status})"
