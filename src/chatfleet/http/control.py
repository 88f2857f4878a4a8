"""Calling a controller: what workers, gateways and the command line share."""

import asyncio
import os
import random
from collections.abc import AsyncGenerator
from typing import Any, Final, TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from chatfleet.core.errors import ChatFleetError
from chatfleet.core.fleet import (
    CIRCUITS_PATH,
    DRAIN_PATH,
    FLEET_EVENT,
    SERVERS_PATH,
    SNAPSHOT_PATH,
    STATUS_PATH,
    WATCH_PATH,
    WORKERS_PATH,
    CircuitReport,
    FleetEvent,
    FleetModel,
    FleetSnapshot,
    FleetStatus,
    Heartbeat,
    Registration,
    ServerRegistration,
    WorkerStatus,
)

CALL_TIMEOUT_S: Final = 5.0
MAX_EVENT_BYTES: Final = 64 * 1024 * 1024
WARN_AFTER: Final = 5
"""Failures in a row that are worth a line in the log: while everything starts, a few are as it should be."""

_MAX_ERROR_BYTES: Final = 64 * 1024
_MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_RETRY_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Waits after failures in a row; the last is that of all further ones. A controller that restarts is full again
within about a second."""

Answer = TypeVar("Answer", bound=BaseModel)


class ControllerError(ChatFleetError):
    """A controller could not be reached, or refused. The message says which, and why; `status` is that of a refusal."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


class ControllerClient:
    """One controller. Every method raises ControllerError; none retries.

    `session` is the caller's, and pools connections for all the controllers it is used for.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str | None) -> None:
        self.url = url
        self._session = session
        self._headers = bearer(token)

    async def heartbeat(self, heartbeat: Heartbeat) -> Registration:
        path = f"{WORKERS_PATH}/{quote(heartbeat.worker.worker_id)}"
        return await self._call("PUT", path, Registration, body=heartbeat)

    async def deregister(self, worker_id: str) -> None:
        await self._call("DELETE", f"{WORKERS_PATH}/{quote(worker_id)}", FleetModel)

    async def drain(self, worker_id: str) -> WorkerStatus:
        return await self._call("POST", DRAIN_PATH.format(worker_id=quote(worker_id)), WorkerStatus)

    async def register_server(self, registration: ServerRegistration) -> WorkerStatus:
        """Returns once the server has been probed; raises when it is not OpenAI-compatible or does not answer."""
        return await self._call("POST", SERVERS_PATH, WorkerStatus, body=registration, timeout_s=30)

    async def unregister_server(self, url: str) -> None:
        await self._call("DELETE", SERVERS_PATH, FleetModel, query={"url": url})

    async def report_circuits(self, report: CircuitReport) -> None:
        await self._call("POST", CIRCUITS_PATH, FleetModel, body=report)

    async def status(self) -> FleetStatus:
        return await self._call("GET", STATUS_PATH, FleetStatus)

    async def snapshot(self) -> FleetSnapshot:
        return await self._call("GET", SNAPSHOT_PATH, FleetSnapshot)

    async def watch(self, silence_s: float) -> AsyncGenerator[FleetEvent, None]:
        """The fleet's events as they happen, the first a FleetSnapshot. Raises when the controller is silent for
        `silence_s`, or ends the watch."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_TIMEOUT_S, sock_read=silence_s)
        try:
            async with self._session.get(
                self.url + WATCH_PATH,
                headers=self._headers,
                timeout=timeout,
                read_bufsize=MAX_EVENT_BYTES,
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                if response.content_type != "text/event-stream":
                    raise ControllerError(f"{self.url} does not answer as a ChatFleet controller.")
                async for line in response.content:
                    if line.startswith(b"data: "):
                        yield FLEET_EVENT.validate_json(line[len(b"data: ") :])
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            raise self._failure(exc) from exc
        raise ControllerError(f"The controller at {self.url} ended the watch.")

    async def _call(
        self,
        method: str,
        path: str,
        answer: type[Answer],
        *,
        body: FleetModel | None = None,
        query: dict[str, str] | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Answer:
        headers = {**self._headers, "content-type": "application/json"}
        try:
            async with self._session.request(
                method,
                self.url + path,
                params=query,
                data=None if body is None else body.to_json(),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                return answer.model_validate_json(await read_bounded(response, _MAX_ANSWER_BYTES))
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            raise self._failure(exc) from exc

    def _failure(self, error: Exception) -> ControllerError:
        if isinstance(error, ValidationError):
            return ControllerError(f"{self.url} does not answer as a ChatFleet controller.")
        if isinstance(error, asyncio.TimeoutError):
            words = "no answer in time"
        elif isinstance(error, aiohttp.ClientConnectorError):
            words = connection_problem(error)
        else:
            words = str(error) or type(error).__name__
        return ControllerError(f"The controller at {self.url} does not answer: {words}.")

    async def _refusal(self, response: aiohttp.ClientResponse) -> ControllerError:
        message: Any
        try:
            message = from_json(await read_bounded(response, _MAX_ERROR_BYTES))["error"]["message"]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            message = "its answer was not a ChatFleet controller's."
        return ControllerError(
            f"The controller at {self.url} refused ({response.status}): {message}", status=response.status
        )


def connection_problem(error: aiohttp.ClientConnectorError) -> str:
    """Why there is no connection, in words for a person: asyncio's own for a refused one name but the address."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted here"
    reason = error.os_error
    return os.strerror(reason.errno) if reason.errno and reason.errno > 0 else reason.strerror or str(reason)


class AnswerTooLarge(ValueError):
    """An answer is over its bound."""


async def read_bounded(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The whole body. Raises AnswerTooLarge as soon as it is over `max_bytes`, and what aiohttp raises."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > max_bytes:
            raise AnswerTooLarge(f"the answer is larger than {max_bytes} bytes")
        parts.append(part)
    return b"".join(parts)


def retry_delay_s(failures: int, rng: random.Random) -> float:
    """How long to wait after so many failures in a row, with jitter: a fleet must not come back in step."""
    return _RETRY_S[min(failures, len(_RETRY_S)) - 1] * rng.uniform(0.5, 1.0)


def new_session(connector: aiohttp.BaseConnector | None = None) -> aiohttp.ClientSession:
    """A pool of connections between components: no cookies, no proxies from the environment."""
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("accept-encoding",),
        trust_env=False,
        auto_decompress=False,
    )
