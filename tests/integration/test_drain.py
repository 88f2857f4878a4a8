"""A gateway that is told to stop: what is on its way is answered, nothing new is taken."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from support.processes import FleetEndpoint
from support.wire import RawConnection, head, user

CHAT = "/v1/chat/completions"
GO_ON_S = 0.3


@pytest.fixture
def gateway() -> Iterator[FleetEndpoint]:
    with FleetEndpoint("--engine", "simulated", "--sim-itl-ms", "20") as process:
        yield process


def stop(gateway: FleetEndpoint) -> threading.Thread:
    """Send the signal; the thread ends with the process, whose exit status must be 0."""

    def run() -> None:
        assert gateway.stop(signal.SIGTERM) == 0

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(GO_ON_S)  # well within the second for which an idle connection stays
    return thread


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
