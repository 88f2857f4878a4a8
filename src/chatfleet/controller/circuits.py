"""What gateways say of the workers that fail them.

Pure: times are seconds of one monotonic clock, given by the caller.
"""

from collections.abc import Mapping
from typing import Final

from chatfleet.core.fleet import Circuit, CircuitReport, CircuitStatus

KEPT_S: Final = 15.0
"""How long a report counts when no other follows: its gateway may be gone."""

MAX_GATEWAYS: Final = 256


class Circuits:
    """The last report of each gateway process; of more than MAX_GATEWAYS the longest silent are forgotten."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[float, Mapping[str, Circuit]]] = {}  # the longest silent first

    def hear(self, report: CircuitReport, now: float) -> None:
        self._reports.pop(report.gateway_id, None)
        if report.circuits:
            self._reports[report.gateway_id] = now, report.circuits
        if len(self._reports) > MAX_GATEWAYS:
            del self._reports[next(iter(self._reports))]

    def statuses(self, now: float) -> dict[str, CircuitStatus]:
        """Of every worker with a circuit that is not closed, by worker id."""
        self._reports = {gateway: report for gateway, report in self._reports.items() if now - report[0] < KEPT_S}
        told: dict[str, list[Circuit]] = {}
        for _, circuits in self._reports.values():
            for worker_id, circuit in circuits.items():
                told.setdefault(worker_id, []).append(circuit)
        return {worker_id: _status(circuits) for worker_id, circuits in told.items()}


def _status(circuits: list[Circuit]) -> CircuitStatus:
    states = [circuit.state for circuit in circuits]
    return CircuitStatus(
        open=states.count("open"),
        half_open=states.count("half_open"),
        failures=max(circuit.failures for circuit in circuits),
    )
