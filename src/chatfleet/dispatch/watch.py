"""Keeps a FleetView true: watches every controller, and probes the workers that none vouches for or that fail."""

import asyncio
import logging
import math
import random
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from typing import Final

import aiohttp
from pydantic import BaseModel

from chatfleet.core.fleet import ALIVE_INTERVAL_S
from chatfleet.dispatch.breaker import CircuitState
from chatfleet.dispatch.circuit_reports import CircuitReports
from chatfleet.dispatch.view import FleetView, Gap, Worker
from chatfleet.http.control import WARN_AFTER, ControllerClient, ControllerError, bearer, read_bounded, retry_delay_s

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S: Final = 5.0
_SILENCE_S: Final = 5 * ALIVE_INTERVAL_S
_MAX_READY_BYTES: Final = 64 * 1024


class FleetWatch:
    """Runs between `start` and `aclose`. `on_change` is called after every change of the view.

    Controllers are told of the circuits that are not closed.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        controller_urls: Sequence[str],
        token: str | None,
        view: FleetView,
        on_change: Callable[[], None],
    ) -> None:
        self._session = session
        self._clients = [ControllerClient(session, url, token) for url in controller_urls]
        gateway_id = secrets.token_hex(8)
        self._reports = [CircuitReports(client, gateway_id, view) for client in self._clients]
        self._view = view
        self._on_change = on_change
        self._rng = random.Random()
        self._view_changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        view.on_circuit = self._circuit_changed

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._follow(client)) for client in self._clients]
        self._tasks.append(asyncio.create_task(self._probe_doubtful()))
        self._tasks += [asyncio.create_task(reports.run()) for reports in self._reports]

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, client: ControllerClient) -> None:
        failures = 0
        while True:
            try:
                async with aclosing(client.watch(_SILENCE_S)) as events:
                    async for event in events:
                        if failures >= WARN_AFTER:
                            logger.info("the controller at %s is back", client.url)
                        failures = 0
                        self._view.apply(client.url, event, time.monotonic())
                        self._changed()
            except Gap:
                logger.warning("events of the controller at %s are missing; asking for all of it", client.url)
            except ControllerError as exc:
                failures += 1
                if failures == WARN_AFTER:
                    logger.warning("%s Going on with what is known of the fleet; trying again until it answers.", exc)
            except Exception:
                failures += 1
                logger.exception("watching the controller at %s failed; trying again", client.url)
            await asyncio.sleep(retry_delay_s(max(failures, 1), self._rng))

    def _changed(self) -> None:
        self._view_changed.set()
        self._on_change()

    def _circuit_changed(self, worker: Worker, before: CircuitState) -> None:
        info, circuit = worker.info, worker.circuit
        if before is CircuitState.CLOSED:
            words = "others are preferred to the worker %s at %s until it is well: %d requests in a row have failed"
            logger.warning(words, info.worker_id, info.url, circuit.failures)
        elif circuit.state is CircuitState.CLOSED:
            logger.info("the worker %s at %s is well again", info.worker_id, info.url)
        self._view_changed.set()
        for reports in self._reports:
            reports.changed()

    async def _probe_doubtful(self) -> None:
        """One that does not answer must not keep the others waiting."""
        async with asyncio.TaskGroup() as probes:
            while True:
                self._view_changed.clear()
                for worker in self._view.doubtful(time.monotonic()):
                    worker.is_probed = True
                    probes.create_task(self._probe(worker))
                due = self._view.next_doubt()
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if due == math.inf else max(0.0, due - time.monotonic())):
                        await self._view_changed.wait()

    async def _probe(self, worker: Worker) -> None:
        alive = refused = False
        try:
            alive = await self._is_alive(worker)
        except ConnectionRefusedError:
            refused = True
        finally:
            worker.is_probed = False
        if self._view.probed(worker, alive=alive, refused=refused, now=time.monotonic()):
            logger.warning("the worker %s at %s is gone", worker.info.worker_id, worker.info.url)
        self._changed()

    async def _is_alive(self, worker: Worker) -> bool:
        """Whether this very worker answers; a new one on its port is another one. Our own are asked without the token:
        whoever has taken the port must not get it. Raises ConnectionRefusedError."""
        info = worker.info
        is_ours = info.kind == "chatfleet"
        url = info.url + ("/ready" if is_ours else "/v1/models")
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        headers = bearer(None if is_ours else info.api_key)
        try:
            async with self._session.get(url, headers=headers, timeout=timeout, allow_redirects=False) as response:
                if not is_ours:
                    return response.status == 200
                if response.status == 503:  # alive, its engine restarting
                    return True
                answer = await read_bounded(response, _MAX_READY_BYTES)
                return response.status == 200 and _Ready.model_validate_json(answer).worker_id == info.worker_id
        except aiohttp.ClientConnectorError as exc:
            if isinstance(exc.os_error, ConnectionRefusedError):
                raise exc.os_error from exc
            return False
        except (aiohttp.ClientError, OSError, ValueError):
            return False


class _Ready(BaseModel):
    worker_id: str
