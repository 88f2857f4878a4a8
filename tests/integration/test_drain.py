"""Servers that are told to stop: what is on its way is answered, nothing new is taken."""

import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from support.fleet import until, workers
from support.processes import CommandProcess, ControllerProcess, FleetEndpoint, GatewayProcess, WorkerProcess
from support.serve import running
from support.wire import PATIENCE_S, RawConnection, head, user

CHAT = "/v1/chat/completions"
PACED = ("--engine", "simulated", "--sim-itl-ms", "20")
GO_ON_S = 0.3


@pytest.fixture
def gateway() -> Iterator[FleetEndpoint]:
    with FleetEndpoint(*PACED) as process:
        yield process


@pytest.fixture
def controller() -> Iterator[ControllerProcess]:
    with ControllerProcess() as process:
        yield process


def fleet_worker(controller: ControllerProcess, *arguments: str) -> WorkerProcess:
    return WorkerProcess(*PACED, "--controller-url", controller.url, *arguments)


def stop(process: CommandProcess) -> threading.Thread:
    """Send the signal; the thread ends with the process, whose exit status must be 0."""

    def run() -> None:
        assert process.stop(signal.SIGTERM, timeout_s=PATIENCE_S) == 0

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(GO_ON_S)  # well within the second for which an idle connection stays
    return thread


@pytest.mark.long
def test_an_idle_connection_is_answered_once_more_and_closed(gateway: FleetEndpoint) -> None:
    with RawConnection(gateway.url) as hot, RawConnection(gateway.url) as cold:
        for connection in (hot, cold):
            assert connection.send(head("GET", "/health")).read_response().status == 200
        stopping = stop(gateway)
        hot.post(CHAT, {"messages": user("hi"), "max_tokens": 2})
        cold.send(head("GET", "/health"))
        for connection in (hot, cold):
            response = connection.read_response()
            assert (response.status, response.headers["connection"]) == (200, "close")
            assert connection.at_end()
        stopping.join()
    assert "Traceback" not in gateway.output


@pytest.mark.long
def test_what_is_running_is_completed(gateway: FleetEndpoint) -> None:
    ask = {"messages": user("hi"), "max_tokens": 60, "ignore_eos": True}
    with RawConnection(gateway.url) as stream, RawConnection(gateway.url) as whole:
        stream.post(CHAT, {**ask, "stream": True})
        stream.read_head()
        whole.post(CHAT, ask)
        time.sleep(GO_ON_S)
        stopping = stop(gateway)
        with pytest.raises(ConnectionError):
            RawConnection(gateway.url)
        assert stream.rest().endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        response = whole.read_response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        stopping.join()
    assert "Traceback" not in gateway.output


@pytest.mark.long
def test_a_second_signal_breaks_off_with_an_error(gateway: FleetEndpoint) -> None:
    ask = {"messages": user("hi"), "max_tokens": 2000, "ignore_eos": True}
    with RawConnection(gateway.url) as stream, RawConnection(gateway.url) as whole:
        stream.post(CHAT, {**ask, "stream": True})
        stream.read_head()
        whole.post(CHAT, ask)
        stopping = stop(gateway)
        gateway._process.send_signal(signal.SIGTERM)
        rest = stream.rest()
        assert rest.count(b'"shutting_down"') == 1 and b"[DONE]" not in rest and rest.endswith(b"0\r\n\r\n")
        assert whole.read_response().status == 503
        stopping.join()
    assert "Traceback" not in gateway.output


def test_a_worker_leaves_at_once_and_finishes_what_it_has(controller: ControllerProcess) -> None:
    ask = {"messages": user("hi"), "max_tokens": 100, "ignore_eos": True}
    with fleet_worker(controller) as worker, controller.http() as fleet:
        until(lambda: workers(fleet), "the worker")
        with RawConnection(worker.url) as stream, RawConnection(worker.url) as whole, RawConnection(worker.url) as idle:
            stream.post(CHAT, {**ask, "stream": True})
            stream.read_head()
            whole.post(CHAT, ask)
            assert idle.send(head("GET", "/health")).read_response().status == 200
            stopping = stop(worker)
            assert idle.post(CHAT, {**ask, "max_tokens": 1}).read_response().headers["connection"] == "close"
            until(lambda: not workers(fleet), "its leaving")
            until(lambda: refuses(worker.url), "its refusal of new connections")
            assert worker.alive()
            assert b"data: [DONE]\n\n\r\n0\r\n\r\n" in stream.rest()
            assert whole.read_response().status == 200
        stopping.join()
    assert "Traceback" not in worker.output


@pytest.mark.long
def test_what_a_worker_does_not_finish_in_time_is_broken_off(controller: ControllerProcess) -> None:
    ask = {"messages": user("hi"), "max_tokens": 3000, "ignore_eos": True}
    with fleet_worker(controller, "--drain-timeout", "0.5", "--max-concurrency", "2") as worker:
        with RawConnection(worker.url) as stream, RawConnection(worker.url) as whole, RawConnection(worker.url) as late:
            stream.post(CHAT, {**ask, "stream": True})
            stream.read_head()
            whole.post(CHAT, ask)
            late.post(CHAT, ask)
            begun = time.monotonic()
            stopping = stop(worker)
            rest = stream.rest()
            assert rest.count(b'"shutting_down"') == 1 and b"[DONE]" not in rest
            for connection in (whole, late):
                assert connection.read_response().status == 503
            assert time.monotonic() - begun < 20
        stopping.join()
    assert "Traceback" not in worker.output


@pytest.mark.long
def test_an_answer_that_was_to_leave_the_connection_open_does_so_for_a_moment(gateway: FleetEndpoint) -> None:
    """Its client was told nothing of the end, and may have sent the next request already."""
    ask = {"messages": user("hi"), "max_tokens": 50, "ignore_eos": True}
    with RawConnection(gateway.url) as connection:
        connection.post(CHAT, {**ask, "stream": True})
        connection.read_head()
        stopping = stop(gateway)
        assert b"".join(connection.read_chunks()).endswith(b"data: [DONE]\n\n")
        response = connection.post(CHAT, {**ask, "max_tokens": 1}).read_response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert connection.at_end()
        stopping.join()


@pytest.mark.long
def test_no_process_of_a_gateway_that_stops_takes_a_connection_that_nobody_answers(
    controller: ControllerProcess,
) -> None:
    ask = {"messages": user("hi"), "max_tokens": 250, "ignore_eos": True, "stream": True}
    with (
        fleet_worker(controller),
        GatewayProcess("--processes", "2", controllers=[controller], models=["simulated"]) as gateway,
        RawConnection(gateway.url) as stream,
    ):
        stream.post(CHAT, ask).read_head()
        stopping = stop(gateway)
        until(lambda: refuses(gateway.url), "its refusal of new connections")
        assert any(map(running, psutil.Process(gateway.pid).children())), "it refused only once all had ended"
        assert b"".join(stream.read_chunks()).endswith(b"data: [DONE]\n\n")
        stopping.join()


def refuses(url: str) -> bool:
    try:
        RawConnection(url).close()
    except ConnectionRefusedError:
        return True
    return False
