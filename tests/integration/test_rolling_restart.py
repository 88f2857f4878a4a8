"""Every part of a fleet is restarted while clients ask: no request is lost."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from support.fleet import statuses, until
from support.load import Load
from support.processes import CommandProcess, ControllerProcess, GatewayProcess, WorkerProcess
from support.wire import RawConnection, head

PACED = ("--engine", "simulated", "--sim-itl-ms", "10")


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    """Whatever is started in a test is stopped at its end, the last first."""
    with ExitStack() as stack:
        yield stack


def free_ports(count: int) -> list[int]:
    with ExitStack() as taken:
        sockets = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def worker_of(*controllers: CommandProcess) -> WorkerProcess:
    urls = [option for controller in controllers for option in ("--controller-url", controller.url)]
    return WorkerProcess(*PACED, *urls)


def until_known(controller: CommandProcess, workers: int) -> None:
    with controller.http() as http:
        until(lambda: sum(each["ready"] for each in statuses(http).values()) == workers, f"{workers} workers")


def ended_well(process: CommandProcess) -> None:
    assert process.stop() == 0
    assert "Traceback" not in process.output, process.output


@pytest.mark.long
def test_workers(parts: ExitStack) -> None:
    controller = parts.enter_context(ControllerProcess())
    workers = [parts.enter_context(worker_of(controller)) for _ in range(3)]
    gateway = parts.enter_context(GatewayProcess(controllers=[controller], models=["simulated"]))
    until_known(controller, 3)
    with Load(gateway.url) as load:
        for worker in workers:
            load.more()
            ended_well(worker)
            parts.enter_context(worker_of(controller))
            until_known(controller, 3)
        load.more()
    assert not load.refused


@pytest.mark.long
def test_controllers(parts: ExitStack) -> None:
    ports = free_ports(2)
    controllers = [parts.enter_context(ControllerProcess(port=port)) for port in ports]
    parts.enter_context(worker_of(*controllers))
    parts.enter_context(worker_of(*controllers))
    gateway = parts.enter_context(GatewayProcess(controllers=controllers, models=["simulated"]))
    with Load(gateway.url) as load:
        for controller, port in zip(controllers, ports, strict=True):
            load.more()
            ended_well(controller)
            load.more()
            until_known(parts.enter_context(ControllerProcess(port=port)), 2)
        load.more()
    assert not load.refused


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_gateways_where_clients_go_to_the_other_when_one_refuses(parts: ExitStack, processes: int) -> None:
    controller = parts.enter_context(ControllerProcess())
    parts.enter_context(worker_of(controller))
    until_known(controller, 1)

    def gateway(port: int) -> GatewayProcess:
        options = ("--port", str(port), "--processes", str(processes))
        return parts.enter_context(GatewayProcess(*options, controllers=[controller], models=["simulated"]))

    ports = free_ports(2)
    gateways = [gateway(port) for port in ports]
    with Load(*(each.url for each in gateways)) as load:
        for each, port in zip(gateways, ports, strict=True):
            load.more()
            ended_well(each)
            load.more()
            gateway(port)
            load.more()
    assert load.refused


@pytest.mark.long
def test_who_has_connected_is_answered_and_who_comes_later_is_refused(parts: ExitStack) -> None:
    """With a connection for each request there are always some that the server has not come to."""
    worker = parts.enter_context(worker_of())
    lost: list[str] = []
    answered: list[int] = []

    def ask_until_refused() -> None:
        while True:
            try:
                with RawConnection(worker.url) as connection:
                    answered.append(connection.send(head("GET", "/health")).read_response().status)
            except ConnectionRefusedError:
                return
            except (OSError, AssertionError) as exc:
                lost.append(repr(exc))

    with ThreadPoolExecutor(16) as clients:
        asking = [clients.submit(ask_until_refused) for _ in range(16)]
        until(lambda: len(answered) > 100, "answers")
        ended_well(worker)
        for each in asking:
            each.result()
    assert set(answered) == {200} and lost == []
