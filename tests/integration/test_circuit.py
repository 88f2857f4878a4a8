"""Workers that fail again and again are left alone until they are well, and operators see it."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count

import httpx
import pytest

from chatfleet.core.fleet import MAX_CIRCUITS_TOLD
from chatfleet.dispatch.breaker import FAILURES
from support.command import run
from support.fake_openai import FakeOpenAI, http_answer, stream_chunk, stream_head
from support.fleet import beat, statuses, until, worker_json
from support.metrics import scrape
from support.processes import ControllerProcess, GatewayProcess
from support.raw_upstream import CHAT, Call, RawFleet, RawUpstream, Script, ask, event, raw_fleet, whole
from support.suites import quick
from support.wire import PATIENCE_S, Json, error_object, user

CLOSED, HALF_OPEN, OPEN = 0.0, 1.0, 2.0
_numbers = count()


def chat(http: httpx.Client) -> httpx.Response:
    """A request like no other: none may be refused for what an earlier one has done."""
    return http.post(CHAT, json=ask(messages=user(f"hi {next(_numbers)}")))


def state(http: httpx.Client, url: str, model: str = "one") -> float:
    return scrape(http).value("chatfleet:worker_circuit_state", model_name=model, worker=url)


def openings(http: httpx.Client, url: str, model: str = "one") -> float:
    return scrape(http).value("chatfleet:worker_circuit_opened_total", model_name=model, worker=url)


def until_open(http: httpx.Client, url: str) -> None:
    """Ask until the circuit of the worker is open."""
    until(lambda: chat(http) and state(http, url) == OPEN, f"the circuit of {url} opens")


@contextmanager
def with_another(fleet: RawFleet) -> Iterator[RawUpstream]:
    """A second worker of the model, which is well."""
    with RawUpstream() as other, fleet.controller.http() as controller, fleet.gateway.http() as http:
        beat(controller, worker_json("other", other.url, "one"))
        until(lambda: scrape(http).value("chatfleet:workers", model_name="one") == 2, "the gateway knows of it")
        yield other


@pytest.fixture
def fleet() -> Iterator[RawFleet]:
    """One of its own: what a circuit has been through stays with it."""
    with raw_fleet() as fleet:
        yield fleet
        fleet.assert_well()


def test_a_worker_that_breaks_off_is_left_alone_and_comes_back_when_it_is_well(fleet: RawFleet) -> None:
    failing = fleet.upstream
    failing.script = failing.ready = Call.reset
    with fleet.gateway.http() as http, fleet.controller.http() as controller:
        assert state(http, failing.url) == CLOSED and openings(http, failing.url) == 0
        until_open(http, failing.url)
        with with_another(fleet) as other:
            before = len(failing.calls)
            assert [chat(http).status_code for _ in range(30)] == [200] * 30
            assert len(failing.calls) == before and len(other.calls) == 30
            assert openings(http, failing.url) == 1
            told = until(lambda: _circuit(controller, "raw")["open"] and _circuit(controller, "raw"), "its status")
            assert told["open"] == 1 and told["half_open"] == 0 and told["failures"] >= 5
            assert _circuit(controller, "other") == {"open": 0, "half_open": 0, "failures": 0}

            failing.forget()
            until(lambda: state(http, failing.url) == HALF_OPEN, "a probe finds it alive")
            until(lambda: chat(http).status_code == 200 and state(http, failing.url) == CLOSED, "it is tried")
            until(lambda: _circuit(controller, "raw") == _circuit(controller, "other"), "its status is as before")
            assert failing.calls and openings(http, failing.url) == 1
    output = fleet.gateway.output
    assert output.count("until it is well") == 1 and output.count("is well again") == 1


def _circuit(controller: httpx.Client, worker_id: str) -> Json:
    circuit: Json = statuses(controller)[worker_id]["circuit"]
    return circuit


def half_a_stream(call: Call) -> None:
    assert call.body
    call.send(stream_head(connection="keep-alive") + stream_chunk(event("1")))
    call.reset()


def a_status(status: int) -> Script:
    return lambda call: (call.body, call.send(whole(b'{"error": {"message": "no"}}', status=status)))


@pytest.mark.parametrize(
    ("script", "expected"),
    quick(
        2,
        [
            (half_a_stream, OPEN),
            (a_status(503), CLOSED),
            (a_status(500), OPEN),
            (a_status(502), OPEN),
            (a_status(400), CLOSED),
        ],
    ),
    ids=["half a stream", "503", "500", "502", "400"],
)
def test_a_worker_is_not_well_whose_answers_are_no_good(fleet: RawFleet, script: Script, expected: float) -> None:
    fleet.upstream.script, fleet.upstream.ready = script, Call.reset
    with fleet.gateway.http() as http:
        for _ in range(FAILURES + 1):
            http.post(CHAT, json=ask(True))
        assert state(http, fleet.upstream.url) == expected


def test_a_half_open_worker_has_one_request_at_a_time(fleet: RawFleet) -> None:
    failing, tried, free = fleet.upstream, threading.Event(), threading.Event()

    def slow(call: Call) -> None:
        tried.set()
        assert free.wait(PATIENCE_S)
        call.serve()

    failing.script = Call.reset
    with fleet.gateway.http() as http:
        until_open(http, failing.url)
        with with_another(fleet), ThreadPoolExecutor(16) as pool:
            failing.script, before = slow, len(failing.calls)
            asked = []

            def is_tried() -> bool:
                asked.append(pool.submit(chat, http))
                return tried.wait(0.1)

            until(is_tried, "it is tried")
            assert state(http, failing.url) == HALF_OPEN
            assert [chat(http).status_code for _ in range(20)] == [200] * 20
            assert len(failing.calls) == before + 1
            free.set()
            assert all(response.result().status_code == 200 for response in asked)
        assert state(http, failing.url) == CLOSED


@pytest.mark.long
def test_a_half_open_worker_that_fails_again_is_left_alone_again(fleet: RawFleet) -> None:
    failing = fleet.upstream
    failing.script = Call.reset
    with fleet.gateway.http() as http:
        until_open(http, failing.url)
        with with_another(fleet):
            until(lambda: chat(http) and openings(http, failing.url) >= 2, "it is tried, and fails")
            assert state(http, failing.url) in (HALF_OPEN, OPEN)
    assert fleet.gateway.output.count("until it is well") == 1, "the log tells it once"


def test_the_only_worker_of_a_model_is_asked_all_the_same(fleet: RawFleet) -> None:
    only = fleet.upstream
    only.script = only.ready = Call.reset
    with fleet.gateway.http() as http:
        until_open(http, only.url)
        refusal = chat(http)
        assert refusal.status_code in (500, 502) and error_object(refusal.content)["type"] == "server_error"
        only.script = Call.serve
        assert chat(http).status_code == 200, "it is well, although no probe says so"
        assert state(http, only.url) == CLOSED


@pytest.mark.long
def test_a_server_that_refuses_connections_is_left_alone_and_comes_back(fleet: RawFleet) -> None:
    with FakeOpenAI("one") as server, fleet.gateway.http() as http, fleet.controller.http() as controller:
        server.reply = lambda write: write(http_answer(json.dumps({"id": "server"}).encode()))
        beat(controller, worker_json("server", server.url, "one", kind="openai"))
        until(lambda: chat(http).json() == {"id": "server"}, "it is asked")
        server.stop()
        until_open(http, server.url)
        retries = scrape(http).value("chatfleet:retries_total", model_name="one")
        assert [chat(http).status_code for _ in range(30)] == [200] * 30
        assert scrape(http).value("chatfleet:retries_total", model_name="one") == retries, "nobody tried it"

        until(lambda: _circuit(controller, "server")["open"], "its status")
        shown = run("status", "--once", "--controller-url", fleet.controller.url).stdout
        assert "failing" in shown and "in a row failed; 1 gateway process will prefer others" in shown
        (report,) = json.loads(run("status", "--json", "--controller-url", fleet.controller.url).stdout)["controllers"]
        circuits = {worker["worker_id"]: worker["circuit"]["open"] for worker in report["status"]["workers"]}
        assert circuits == {"server": 1, "raw": 0}

        server.start()
        until(lambda: state(http, server.url) == HALF_OPEN, "a probe finds it alive")
        until(lambda: _circuit(controller, "server")["half_open"], "its status")
        assert "on trial" in run("status", "--once", "--controller-url", fleet.controller.url).stdout
        until(lambda: chat(http).json() == {"id": "server"}, "it is asked")
        assert state(http, server.url) == CLOSED


@pytest.mark.long
def test_every_gateway_is_counted(fleet: RawFleet) -> None:
    failing = fleet.upstream
    failing.script = failing.ready = Call.reset
    with (
        GatewayProcess(controllers=[fleet.controller], models=["one"]) as second,
        second.http() as other,
        fleet.gateway.http() as http,
        fleet.controller.http() as controller,
    ):
        until_open(http, failing.url)
        until_open(other, failing.url)
        until(lambda: _circuit(controller, "raw")["open"] == 2, "both have told of it")


TOKEN = "a-token-for-the-tests"
REPORT: Json = {"gateway_id": "g", "circuits": {"w": {"state": "open", "failures": 5}}}


@pytest.fixture(scope="module")
def guarded() -> Iterator[ControllerProcess]:
    with ControllerProcess(env={"CHATFLEET_FLEET_TOKEN": TOKEN}) as process:
        yield process


def test_reports_are_guarded_as_other_mutations_are(guarded: ControllerProcess, fleet: RawFleet) -> None:
    with guarded.http() as http:
        assert http.post("/fleet/circuits", json=REPORT).status_code == 401
        assert http.post("/fleet/circuits", json=REPORT, headers={"authorization": "Bearer x"}).status_code == 401
        good = {"authorization": f"Bearer {TOKEN}"}
        assert http.post("/fleet/circuits", json=REPORT, headers=good).status_code == 200
    with fleet.controller.http() as http:
        text = {"content-type": "text/plain"}
        assert http.post("/fleet/circuits", content=json.dumps(REPORT), headers=text).status_code == 415
        assert http.post("/fleet/circuits", json=REPORT, headers={"host": "evil.example"}).status_code == 421
        assert http.post("/fleet/circuits", json=REPORT).status_code == 200


TOO_MANY = {f"w{number}": {"state": "open", "failures": 5} for number in range(MAX_CIRCUITS_TOLD + 1)}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"gateway_id": ""}, "gateway_id"),
        ({"gateway_id": "x" * 200}, "gateway_id"),
        ({"circuits": TOO_MANY}, "circuits"),
        ({"circuits": {"<b>": {"state": "open", "failures": 5}}}, "circuits"),
        ({"circuits": {"w": {"state": "closed", "failures": 5}}}, "circuits.w.state"),
        ({"circuits": {"w": {"state": "open", "failures": -1}}}, "circuits.w.failures"),
    ],
)
def test_a_report_that_is_wrong_is_refused(guarded: ControllerProcess, wrong: Json, field: str) -> None:
    with guarded.http() as http:
        response = http.post("/fleet/circuits", json={**REPORT, **wrong}, headers={"authorization": f"Bearer {TOKEN}"})
    assert response.status_code == 400
    assert str(error_object(response.content)["param"]).startswith(field)
