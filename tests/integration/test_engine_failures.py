"""What clients see when the engine fails, and what is left of it when the worker ends."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import psutil
import pytest
from openai import APIError, InternalServerError, OpenAI

from support.processes import WorkerProcess
from support.wire import PATIENCE_S, Json, RawConnection, error_object, events, failed, head, user

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
AN_HOUR = ("--engine", "simulated", "--sim-itl-ms", "3600000")
STREAM: Json = {"messages": user("hi"), "stream": True}


def engine_of(worker: WorkerProcess) -> psutil.Process:
    """The engine's process: the worker's only child."""
    (child,) = psutil.Process(worker.pid).children()
    return child


def until_ready(http: httpx.Client) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while http.get("/ready").status_code != 200:
        assert time.monotonic() < deadline, "it does not come back"


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended; waits for it, and counts one that nobody reaps here as ended."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def last_event(connection: RawConnection) -> Json:
    """The error object that a stream ends with, its connection still being in order."""
    *data, last = events(b"".join(connection.read_chunks()))
    assert "[DONE]" not in (*data, last)
    assert all("error" not in json.loads(item) for item in data)
    return error_object(last)


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess(*AN_HOUR) as worker:
        yield worker


def test_a_killed_engine_ends_every_request_with_an_error_and_comes_back(worker: WorkerProcess) -> None:
    with worker.http() as http, ExitStack() as stack:
        streams = [stack.enter_context(RawConnection(worker.url)) for _ in range(5)]
        for connection in streams:
            connection.post(CHAT, STREAM)
            assert connection.read_head()[0] == 200
        wholes = [stack.enter_context(RawConnection(worker.url)) for _ in range(5)]
        for connection in wholes:
            connection.post(CHAT, {"messages": user("hi")})
        assert http.post(COMPLETIONS, json={"prompt": "hi", "max_tokens": 1}).status_code == 200
        engine = engine_of(worker)
        engine.kill()
        for connection in streams:
            error = last_event(connection)
            assert error["type"] == "server_error" and error["code"] == "engine_crashed"
            assert "restarted" in error["message"]
        for connection in wholes:
            response = connection.read_response()
            assert response.status in (500, 503)
            assert error_object(response.body)["type"] == "server_error"
        assert http.get("/health").status_code == 200
        not_ready = http.get("/ready")
        if not_ready.status_code != 200:  # it may be back already
            failed(not_ready, 503, code="engine_unavailable")
        until_ready(http)
        assert engine_of(worker).pid != engine.pid
        assert http.post(COMPLETIONS, json={"prompt": "hi", "max_tokens": 1}).status_code == 200


@pytest.mark.long
def test_while_the_engine_restarts_requests_get_a_503_and_models_stay_listed(worker: WorkerProcess) -> None:
    with worker.http() as http:
        seen: set[int] = set()
        for _ in range(3):  # each restart waits twice as long as the one before
            engine_of(worker).kill()
            until_not_ready(http)
            for stream in (False, True):
                response = http.post(COMPLETIONS, json={"prompt": "hi", "max_tokens": 1, "stream": stream})
                seen.add(response.status_code)
                if response.status_code != 200:
                    failed(response, 503, code="engine_unavailable")
            assert http.get("/v1/models").json()["data"][0]["id"] == "simulated"
            assert http.get("/health").status_code == 200
            until_ready(http)
        assert 503 in seen


def until_not_ready(http: httpx.Client) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (response := http.get("/ready")).status_code == 200:
        assert time.monotonic() < deadline, "it stays ready"
    failed(response, 503, code="engine_unavailable")


def test_faults_of_the_engine_have_the_one_form_before_and_inside_a_stream() -> None:
    with WorkerProcess("--engine", "simulated", "--sim-failure-rate", "1") as worker, worker.http() as http:
        kinds: set[str] = set()
        while len(kinds) < 2:  # a fault comes before the first token or later, by the request's number
            response = http.post(CHAT, json=STREAM)
            if response.status_code == 200:
                *data, last = events(response.content)
                assert "[DONE]" not in data and error_object(last)["code"] == "engine_error"
                kinds.add("inside")
            else:
                failed(response, 500, code="engine_error")
                kinds.add("before")
        failed(http.post(CHAT, json={"messages": user("hi")}), 500, code="engine_error")
        failed(http.post(COMPLETIONS, json={"prompt": ["a", "b"], "n": 3}), 500, code="engine_error")


def test_the_openai_client_raises_what_a_stream_breaks_off_with() -> None:
    with (
        WorkerProcess("--engine", "simulated", "--sim-failure-rate", "1") as worker,
        OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as client,
    ):
        kinds: set[type] = set()
        while len(kinds) < 2:
            with pytest.raises(APIError) as raised:
                for _ in client.chat.completions.create(
                    model="simulated", messages=[{"role": "user", "content": "hi"}], stream=True
                ):
                    pass
            assert "Simulated failure" in str(raised.value)
            kinds.add(type(raised.value))
    assert kinds == {APIError, InternalServerError}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_engine_outlives_its_worker(number: signal.Signals) -> None:
    worker = WorkerProcess("--engine", "simulated")
    engine = engine_of(worker)
    status = worker.stop(number)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 0), worker.output
    assert is_gone(engine)
    assert "Traceback" not in worker.output


def test_no_engine_outlives_a_worker_that_is_killed_in_the_middle_of_streams(worker: WorkerProcess) -> None:
    engine = engine_of(worker)
    with RawConnection(worker.url) as connection:
        connection.post(CHAT, STREAM)
        connection.read_head()
        worker.stop(signal.SIGKILL)
        assert is_gone(engine)


def test_a_stop_lets_what_runs_finish() -> None:
    worker = WorkerProcess("--engine", "simulated", "--sim-itl-ms", "20")
    with ThreadPoolExecutor() as pool, RawConnection(worker.url) as connection:
        connection.post(CHAT, {**STREAM, "max_tokens": 60, "ignore_eos": True})
        connection.read_head()
        stopped = pool.submit(worker.stop)
        assert b"".join(connection.read_chunks()).endswith(b"data: [DONE]\n\n")
        assert stopped.result() == 0


def test_a_second_stop_ends_what_runs_with_an_error(worker: WorkerProcess) -> None:
    with (
        RawConnection(worker.url) as stream,
        RawConnection(worker.url) as whole,
        RawConnection(worker.url) as half,
        worker.http() as http,
    ):
        stream.post(CHAT, STREAM).read_head()
        whole.post(CHAT, {"messages": user("hi")})
        half.send(head("POST", CHAT, "content-length: 100") + b"{")
        assert http.post(COMPLETIONS, json={"prompt": "hi", "max_tokens": 1}).status_code == 200
        process = psutil.Process(worker.pid)
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        while is_listening(process):
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        assert last_event(stream)["type"] == "server_error"
        for connection in (whole, half):
            response = connection.read_response()
            assert response.status in (500, 503)
            assert error_object(response.body)["type"] == "server_error"
        worker.stop()


def is_listening(process: psutil.Process) -> bool:
    try:
        return any(connection.status == psutil.CONN_LISTEN for connection in process.net_connections("inet"))
    except psutil.NoSuchProcess:
        return False
