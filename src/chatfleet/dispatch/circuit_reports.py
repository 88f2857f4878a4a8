"""Tells a controller of the circuits that are not closed, for the eyes of whoever asks it for the fleet's status."""

import asyncio
import logging
from contextlib import suppress
from itertools import islice
from typing import Final

from chatfleet.core.fleet import MAX_CIRCUITS_TOLD, REPORT_CIRCUITS_S, Circuit, CircuitReport
from chatfleet.dispatch.breaker import CircuitState
from chatfleet.dispatch.view import FleetView
from chatfleet.http.control import ControllerClient, ControllerError

logger = logging.getLogger(__name__)

_GATHERING_S: Final = 0.1
"""How long changes wait for others: many workers may fail at once."""


class CircuitReports:
    """Reports go out after a change, and every REPORT_CIRCUITS_S while there is something to tell. One that fails is
    not missed: the next tells all anew, and what the controller is not told again it forgets."""

    def __init__(self, client: ControllerClient, gateway_id: str, view: FleetView) -> None:
        self._client = client
        self._gateway_id = gateway_id
        self._view = view
        self._news = asyncio.Event()

    def changed(self) -> None:
        """The circuit of a worker has."""
        self._news.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        has_more = False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(REPORT_CIRCUITS_S if has_more else None):
                    await self._news.wait()
            await asyncio.sleep(_GATHERING_S)
            self._news.clear()
            report = self._report()
            has_more = bool(report.circuits)
            try:
                await self._client.report_circuits(report)
            except ControllerError as exc:  # it is away, which others say, or too old to know what this is
                logger.debug("%s", exc)

    def _report(self) -> CircuitReport:
        circuits = {
            worker.info.worker_id: Circuit(
                state="open" if worker.circuit.state is CircuitState.OPEN else "half_open",
                failures=worker.circuit.failures,
            )
            for worker in islice(self._view.troubled(), MAX_CIRCUITS_TOLD)
        }
        return CircuitReport(gateway_id=self._gateway_id, circuits=circuits)
