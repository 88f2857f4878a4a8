"""The numbers of a gateway: one process's, or the sum of all that share its port."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Final

import msgspec
from prometheus_client.core import Metric

from chatfleet.observability.circuits import CircuitNumbers, merged
from chatfleet.observability.exposition import Scrape
from chatfleet.observability.families import (
    circuit_families,
    forwarding_families,
    gauge,
    generation_families,
    request_families,
)
from chatfleet.observability.requests import RequestMetrics, summed
from chatfleet.observability.sharing import ProcessNumbers, SharedFile, is_alive

PUBLISH_INTERVAL_S: Final = 1.0


class GatewayMetrics(RequestMetrics):
    """What a gateway process counts. Used on one event loop.

    `endpoints` are the paths that workers answer. `upstream_connections` gives how many connections to workers are
    open, `workers` how many workers each model has in this gateway's view, `circuits` the breakers before them. With a
    `file`, `sharing` must be entered before the first scrape.
    """

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        upstream_connections: Callable[[], int],
        workers: Callable[[], Mapping[str, int]],
        circuits: Callable[[], Iterable[CircuitNumbers]],
        file: SharedFile | None = None,
    ) -> None:
        super().__init__(endpoints)
        self._upstream_connections = upstream_connections
        self._workers = workers
        self._circuits = circuits
        self._circuits_before: list[CircuitNumbers] = []
        self._file = file
        self._writing = asyncio.Lock()
        self._written = b""

    @contextlib.asynccontextmanager
    async def sharing(self) -> AsyncIterator[None]:
        """Go on from the numbers of who had this process's place before, and share ours every second and at the end.

        Does nothing without a file.
        """
        if self._file is None:
            yield
            return
        if (before := await asyncio.to_thread(self._file.read)) is not None:
            for one in before.requests:
                self.of(one.model_name, one.endpoint).add(one, alive=False)
            self._circuits_before = before.circuits
        ending = asyncio.Event()
        publishing = asyncio.create_task(self._publish_until(ending))
        try:
            yield
        finally:
            ending.set()
            await publishing

    async def scrape(self) -> Scrape:
        """The numbers of all processes. Ours are written first: whoever is asked next tells of no less."""
        ours = await self._publish()
        workers = dict(self._workers())
        return await asyncio.to_thread(self._added_up, ours, workers)

    async def _publish_until(self, ending: asyncio.Event) -> None:
        while not ending.is_set():
            await self._publish()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PUBLISH_INTERVAL_S):
                    await ending.wait()
        await self._publish()

    async def _publish(self) -> bytes:
        async with self._writing:
            circuits = merged([(self._circuits_before, False), (self._circuits(), True)])
            numbers = ProcessNumbers(os.getpid(), self.all(), self._upstream_connections(), circuits)
            encoded = msgspec.json.encode(numbers)
            if self._file is not None and encoded != self._written:
                await asyncio.to_thread(self._file.write, encoded)
                self._written = encoded
            return encoded

    def _added_up(self, ours: bytes, workers: Mapping[str, int]) -> Scrape:
        own = msgspec.json.decode(ours, type=ProcessNumbers)
        processes = {"": own} if self._file is None else {self._file.name: own, **dict(self._file.others())}
        living = {name: one for name, one in processes.items() if one is own or is_alive(one.pid)}
        requests = summed((one.requests, name in living) for name, one in processes.items())
        circuits = merged((one.circuits, name in living) for name, one in processes.items())
        connections = sum(one.upstream_connections for one in living.values())
        families: list[Metric] = [
            *request_families(requests),
            *generation_families(requests),
            *forwarding_families(requests),
            *circuit_families(circuits),
            gauge("chatfleet:upstream_connections", "Open connections to workers.", (), [((), connections)]),
            gauge(
                "chatfleet:workers",
                "Workers that this gateway may ask, by model.",
                ("model_name",),
                (((name,), count) for name, count in sorted(workers.items())),
            ),
        ]
        return Scrape(families, {name: one.pid for name, one in living.items() if name})
