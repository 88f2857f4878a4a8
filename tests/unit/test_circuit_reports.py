"""What gateways tell controllers of their circuits, and what these make of it."""

import asyncio

import pytest

from chatfleet.controller.circuits import KEPT_S, MAX_GATEWAYS, Circuits
from chatfleet.core.fleet import (
    MAX_CIRCUITS_TOLD,
    Circuit,
    CircuitReport,
    CircuitStatus,
    FleetSnapshot,
    ModelInfo,
    WorkerInfo,
    WorkerStatus,
)
from chatfleet.dispatch import circuit_reports
from chatfleet.dispatch.breaker import FAILURES, FIRST_DELAY_S
from chatfleet.dispatch.circuit_reports import CircuitReports
from chatfleet.dispatch.view import FleetView
from chatfleet.http.control import ControllerClient, ControllerError
from support.wire import PATIENCE_S

OPEN = Circuit(state="open", failures=5)
HALF_OPEN = Circuit(state="half_open", failures=9)


class Controller(ControllerClient):
    """Keeps what it is told; `refusal`, where set, is what it says to it."""

    def __init__(self) -> None:
        self.url = "http://c:1"
        self.told: asyncio.Queue[CircuitReport] = asyncio.Queue()
        self.refusal: ControllerError | None = None

    async def report_circuits(self, report: CircuitReport) -> None:
        self.told.put_nowait(report)
        if self.refusal is not None:
            raise self.refusal

    async def next(self) -> dict[str, Circuit]:
        async with asyncio.timeout(PATIENCE_S):
            return (await self.told.get()).circuits


def view_of(workers: int) -> FleetView:
    view = FleetView()
    infos = tuple(
        WorkerInfo(worker_id=f"w{number}", url=f"http://w{number}:1", models=(ModelInfo(id="m"),))
        for number in range(workers)
    )
    view.apply("c", FleetSnapshot(controller_id="c", epoch=1, version=0, expiry_s=15, workers=infos), 0.0)
    return view


def fail(view: FleetView, number: int) -> None:
    for _ in range(FAILURES):
        view.workers_of("m")[number].failed(0.0)


async def test_changes_are_told_at_once_and_what_is_not_closed_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(circuit_reports, "REPORT_CIRCUITS_S", 0.1)
    view, controller = view_of(3), Controller()
    reports = CircuitReports(controller, "g", view)
    view.on_circuit = lambda worker, before: reports.changed()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(reports.run())
        fail(view, 0)
        fail(view, 1)
        view.workers_of("m")[1].circuit.probed(alive=True, now=FIRST_DELAY_S)
        expected = {"w0": OPEN, "w1": Circuit(state="half_open", failures=5)}
        for _ in range(3):
            assert await controller.next() == expected
        for worker in view.workers_of("m"):
            worker.succeeded()
        while await controller.next():
            pass
        await asyncio.sleep(0.5)
        assert controller.told.empty(), "there is nothing to tell"
        running.cancel()


async def test_a_controller_that_does_not_know_of_circuits_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    view, controller = view_of(1), Controller()
    controller.refusal = ControllerError("The controller refused (404)", status=404)
    reports = CircuitReports(controller, "g", view)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(reports.run())
        fail(view, 0)
        for _ in range(3):
            reports.changed()
            assert await controller.next() == {"w0": OPEN}
        running.cancel()
    assert not caplog.records


async def test_a_report_is_bounded() -> None:
    view, controller = view_of(MAX_CIRCUITS_TOLD + 9), Controller()
    for number in range(MAX_CIRCUITS_TOLD + 9):
        fail(view, number)
    reports = CircuitReports(controller, "g", view)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(reports.run())
        reports.changed()
        assert len(await controller.next()) == MAX_CIRCUITS_TOLD
        running.cancel()


def report(gateway_id: str, **circuits: Circuit) -> CircuitReport:
    return CircuitReport(gateway_id=gateway_id, circuits=circuits)


def test_gateways_are_counted_by_state_and_the_last_report_of_each_counts() -> None:
    circuits = Circuits()
    circuits.hear(report("g1", w1=HALF_OPEN, w2=HALF_OPEN), 0.0)
    circuits.hear(report("g2", w1=OPEN), 1.0)
    circuits.hear(report("g1", w1=OPEN, w3=HALF_OPEN), 2.0)
    assert circuits.statuses(2.0) == {
        "w1": CircuitStatus(open=2, failures=5),
        "w3": CircuitStatus(half_open=1, failures=9),
    }
    circuits.hear(report("g1"), 3.0)
    assert circuits.statuses(3.0) == {"w1": CircuitStatus(open=1, failures=5)}


def test_a_report_that_is_not_repeated_is_forgotten() -> None:
    circuits = Circuits()
    circuits.hear(report("g1", w1=OPEN), 0.0)
    circuits.hear(report("g2", w1=OPEN), 10.0)
    assert circuits.statuses(KEPT_S - 0.1)["w1"].open == 2
    assert circuits.statuses(KEPT_S)["w1"].open == 1
    assert circuits.statuses(10.0 + KEPT_S) == {}


def test_the_gateways_that_are_remembered_are_bounded() -> None:
    circuits = Circuits()
    for number in range(MAX_GATEWAYS + 5):
        circuits.hear(report(f"g{number}", w1=OPEN), 0.0)
    assert circuits.statuses(0.0)["w1"].open == MAX_GATEWAYS


def test_a_controller_that_knows_nothing_of_circuits_tells_of_none() -> None:
    old = '{"worker_id":"w","url":"http://w:1","kind":"openai","model_names":[],"ready":true,"load":{},"silent_s":1}'
    assert WorkerStatus.model_validate_json(old).circuit == CircuitStatus(open=0, half_open=0, failures=0)
