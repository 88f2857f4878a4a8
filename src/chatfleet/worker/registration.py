"""A worker's membership in the fleet: known to every controller, for as long as it lives."""

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Sequence

import aiohttp

from chatfleet.core.fleet import Heartbeat, Registration
from chatfleet.http.control import WARN_AFTER, ControllerClient, ControllerError, retry_delay_s

logger = logging.getLogger(__name__)


def new_worker_id() -> str:
    return f"worker-{uuid.uuid4().hex[:16]}"


class Membership:
    """Sends heartbeats to all `controllers`, each at the pace it asks for; a change is told at once by `announce`.

    `describe` gives the heartbeat to send now. `on_drain` is called once a controller answers that the worker is to
    finish what it has and end; from then on all are told that it is not ready. A controller that does not answer is
    tried again until it does; one that lost its memory learns everything from the next heartbeat.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        controller_urls: Sequence[str],
        token: str | None,
        describe: Callable[[], Heartbeat],
        on_drain: Callable[[], None],
    ) -> None:
        self._clients = [ControllerClient(session, url, token) for url in controller_urls]
        self._describe = describe
        self._on_drain = on_drain
        self._is_draining = False
        self._changed = {client.url: asyncio.Event() for client in self._clients}
        self._rng = random.Random()
        self._registered_with: set[ControllerClient] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def join(self) -> None:
        """Begin the heartbeats. Returns at once."""
        self._tasks = [asyncio.create_task(self._keep_registered(client)) for client in self._clients]

    def announce(self) -> None:
        """Send a heartbeat now, because something has changed."""
        for changed in self._changed.values():
            changed.set()

    async def leave(self) -> None:
        """End the heartbeats and deregister everywhere, so that nobody sends requests from now on. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            await asyncio.gather(*map(self._deregister, self._registered_with))

    async def _keep_registered(self, client: ControllerClient) -> None:
        changed = self._changed[client.url]
        known: Registration | None = None
        failures = 0
        while True:
            changed.clear()
            try:
                registration = await client.heartbeat(self._heartbeat())
            except Exception as exc:
                failures += 1
                if not isinstance(exc, ControllerError):
                    logger.exception("registering with the controller at %s failed; trying again", client.url)
                elif failures == WARN_AFTER:
                    logger.warning("%s Requests go on; trying again until it answers.", exc)
                await asyncio.sleep(retry_delay_s(failures, self._rng))
                continue
            if known is None or failures >= WARN_AFTER or registration.epoch != known.epoch:
                logger.info("registered with the controller at %s", client.url)
            known, failures = registration, 0
            self._registered_with.add(client)
            if registration.drain and not self._is_draining:
                logger.info("the controller at %s has this worker finish what it has, and end", client.url)
                self._is_draining = True
                self.announce()
                self._on_drain()
            try:
                async with asyncio.timeout(registration.heartbeat_interval_s):
                    await changed.wait()
            except TimeoutError:
                pass

    def _heartbeat(self) -> Heartbeat:
        heartbeat = self._describe()
        if not self._is_draining:
            return heartbeat
        return heartbeat.model_copy(update={"worker": heartbeat.worker.model_copy(update={"ready": False})})

    async def _deregister(self, client: ControllerClient) -> None:
        try:
            await client.deregister(self._describe().worker.worker_id)
        except ControllerError as exc:
            logger.warning("%s It will find out by itself.", exc)
