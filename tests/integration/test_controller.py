"""A controller as workers, gateways and other machines meet it."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from support.fake_openai import FakeOpenAI
from support.fleet import Watch, beat, statuses, until, watching, worker_json, workers
from support.processes import ControllerProcess, WorkerProcess
from support.wire import PATIENCE_S, RawConnection, failed, head

TOKEN = "a-token-of-the-fleet-0123456789"
QUICK = ("--heartbeat-interval", "0.3", "--expiry", "1.5")
SIMULATED = ("--engine", "simulated")


@pytest.fixture(scope="module")
def controller_process() -> Iterator[ControllerProcess]:
    with ControllerProcess() as controller:
        yield controller


@pytest.fixture
def controller(controller_process: ControllerProcess) -> Iterator[httpx.Client]:
    """A controller with its usual expiry and without a token, in which no worker is left from other tests."""
    with controller_process.http() as http:
        yield http
        for worker_id in workers(http):
            http.request("DELETE", f"/fleet/workers/{worker_id}", headers={"content-type": "application/json"})
    assert controller_process.alive()


def leave(controller: httpx.Client, worker_id: str) -> httpx.Response:
    return controller.delete(f"/fleet/workers/{worker_id}", headers={"content-type": "application/json"})


def test_a_heartbeat_registers_and_says_when_the_next_is_wanted(controller: httpx.Client) -> None:
    worker = worker_json("w1", "http://10.0.0.1:21002", "m", api_key="key-of-w1")
    answer = beat(controller, worker, running=2)
    snapshot = controller.get("/fleet/snapshot").json()
    assert answer == {
        "controller_id": snapshot["controller_id"],
        "epoch": snapshot["epoch"],
        "heartbeat_interval_s": 5.0,
        "expiry_s": 15.0,
        "drain": False,
    }
    assert snapshot["expiry_s"] == 15.0
    assert snapshot["controller_id"] == f"{socket.gethostname()}:{controller.base_url.port}"
    known = workers(controller)["w1"]
    assert known["url"] == worker["url"] and known["models"][0]["id"] == "m" and known["api_key"] == "key-of-w1"
    assert statuses(controller)["w1"]["load"] == {"running": 2, "waiting": 0}
    assert "key-of-w1" not in controller.get("/fleet/status").text


def test_leaving_is_possible_twice(controller: httpx.Client) -> None:
    beat(controller, worker_json("w1", "http://10.0.0.1:1"))
    assert leave(controller, "w1").status_code == 200 and workers(controller) == {}
    assert leave(controller, "w1").status_code == 200


def test_path_and_body_must_name_the_same_worker(controller: httpx.Client) -> None:
    body = {"worker": worker_json("w1", "http://10.0.0.1:1")}
    failed(controller.put("/fleet/workers/w2", json=body), 400, param="worker.worker_id")
    assert workers(controller) == {}


@pytest.mark.parametrize(
    ("worker", "param"),
    [
        ({"worker_id": "w", "models": []}, "worker.url"),
        (worker_json("w", "ftp://10.0.0.1"), "worker.url"),
        (worker_json("w", "http://user:password@h:1"), "worker.url"),
        (worker_json("w", "http://h:1", ""), "worker.models[0].id"),
        (worker_json("w", "http://h:1", kind="other"), "worker.kind"),
        (worker_json("w", "http://h:1", api_key="a b"), "worker.api_key"),
        (worker_json("w", "http://h:1", *map(str, range(1025))), "worker.models"),
    ],
)
def test_a_worker_that_cannot_be_is_refused_by_field(controller: httpx.Client, worker: object, param: str) -> None:
    failed(controller.put("/fleet/workers/w", json={"worker": worker}), 400, param=param)


def test_what_a_newer_worker_says_beyond_that_is_no_error(controller: httpx.Client) -> None:
    worker = worker_json("w1", "http://10.0.0.1:1", "m", gpu_memory=7)
    response = controller.put("/fleet/workers/w1", json={"worker": worker, "mood": "good"})
    assert response.status_code == 200


def test_events_come_at_once_in_order_and_without_gaps(controller: httpx.Client) -> None:
    with watching(controller) as watch:
        first = watch.next()
        assert first["type"] == "snapshot" and first["workers"] == []
        old, new = worker_json("old", "http://10.0.0.1:1", "m"), worker_json("new", "http://10.0.0.1:1", "m")
        with httpx.Client(base_url=controller.base_url, timeout=60) as other:
            beat(other, old)
            events = [watch.next_change()]
            beat(other, old, running=7)
            beat(other, {**old, "ready": False})
            events.append(watch.next_change())
            beat(other, new)
            events += [watch.next_change(), watch.next_change()]
            leave(other, "new")
            events.append(watch.next_change())
    assert [(event["type"], event["version"] - first["version"]) for event in events] == [
        ("changed", 1),
        ("changed", 2),
        ("gone", 3),
        ("changed", 4),
        ("gone", 5),
    ]
    assert (events[2]["worker_id"], events[2]["reason"]) == ("old", "replaced")
    assert (events[4]["worker_id"], events[4]["reason"]) == ("new", "deregistered")


def test_an_event_does_not_wait_for_the_sign_of_life(controller: httpx.Client) -> None:
    """Ten changes, each read before the next is made: had one waited, a sign of life had come before it."""
    with watching(controller) as watch, httpx.Client(base_url=controller.base_url, timeout=60) as other:
        watch.next()
        kinds: list[str] = []
        while kinds[-10:] != ["changed"] * 10:
            beat(other, worker_json("w", f"http://10.0.0.1:{1 + len(kinds)}", "m"))
            kinds.append(watch.next()["type"])
            if kinds[-1] == "alive":
                kinds.append(watch.next_change()["type"])
            assert len(kinds) < 100, kinds


def test_silence_on_a_watch_is_broken_by_signs_of_life(controller: httpx.Client) -> None:
    with watching(controller) as watch:
        version = watch.next()["version"]
        for _ in range(2):
            alive = watch.next()
            assert (alive["type"], alive["version"]) == ("alive", version)


def test_a_watcher_that_does_not_read_is_dropped_and_holds_up_nobody(
    controller: httpx.Client, controller_process: ControllerProcess
) -> None:
    models = [f"model-{number}-{'x' * 400}" for number in range(1000)]
    with RawConnection(str(controller.base_url)) as deaf, watching(controller) as watch:
        deaf.send(head("GET", "/fleet/watch").replace(b"host: test", b"host: localhost"))
        assert deaf.read_head()[0] == 200
        watch.next()
        for count in range(80):
            beat(controller, worker_json("w", f"http://10.0.0.1:{1 + count}", *models))
            assert watch.next_change()["worker"]["url"].endswith(f":{1 + count}")
        until(lambda: "does not read" in controller_process.output, "the deaf one is dropped")


def test_a_silent_worker_expires_and_one_that_is_heard_does_not() -> None:
    with ControllerProcess(*QUICK) as process, process.http() as controller, watching(controller) as watch:
        assert watch.next()["expiry_s"] == 1.5
        quiet, loud = worker_json("quiet", "http://10.0.0.1:1"), worker_json("loud", "http://10.0.0.2:1")
        with process.http() as other:
            began = time.monotonic()
            beat(other, quiet)
            while "quiet" in workers(other):
                beat(other, loud)
                assert time.monotonic() - began < PATIENCE_S
                time.sleep(0.05)
            assert time.monotonic() - began >= 1.5
            assert "loud" in workers(other)
        changes = [watch.next_change() for _ in range(3)]
        assert (changes[2]["worker_id"], changes[2]["reason"]) == ("quiet", "expired")


@pytest.mark.long
def test_a_controller_that_was_stopped_blames_no_worker() -> None:
    with (
        ControllerProcess(*QUICK) as process,
        WorkerProcess(*SIMULATED, "--controller-url", process.url),
        process.http() as controller,
    ):
        (worker_id,) = until(lambda: workers(controller), "the worker is registered")
        with watching(controller) as watch:
            version = watch.next()["version"]
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(3.0)
            os.kill(process.pid, signal.SIGCONT)
            for _ in range(2):
                alive = watch.next()
                assert (alive["type"], alive["version"]) == ("alive", version)
        assert list(workers(controller)) == [worker_id]


def test_a_worker_joins_and_leaves_by_itself() -> None:
    with ControllerProcess() as process, process.http() as controller, watching(controller) as watch:
        watch.next()
        with WorkerProcess(*SIMULATED, "--model-name", "m", "--controller-url", process.url) as worker:
            joined = watch.next_change()
            assert joined["worker"]["url"] == worker.url and joined["worker"]["ready"]
            assert [model["id"] for model in joined["worker"]["models"]] == ["m"]
            assert joined["worker"]["models"][0]["context_length"] > 0
            assert worker.stop(signal.SIGTERM) == 0
        gone = watch.next_change()
        assert (gone["worker_id"], gone["reason"]) == (joined["worker"]["worker_id"], "deregistered")


def test_a_worker_that_is_killed_expires() -> None:
    with ControllerProcess(*QUICK) as process, process.http() as controller, watching(controller) as watch:
        watch.next()
        with WorkerProcess(*SIMULATED, "--controller-url", process.url) as worker:
            joined = watch.next_change()
            worker.stop(signal.SIGKILL)
        gone = watch.next_change()
        assert (gone["worker_id"], gone["reason"]) == (joined["worker"]["worker_id"], "expired")


@pytest.mark.long
def test_workers_come_back_by_themselves_to_a_controller_that_restarts() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(ControllerProcess())
        stack.enter_context(WorkerProcess(*SIMULATED, "--controller-url", first.url))
        with first.http() as controller:
            before = until(lambda: workers(controller), "the worker is registered")
            epoch = controller.get("/fleet/snapshot").json()["epoch"]
        first.stop(signal.SIGKILL)
        port = int(first.url.rpartition(":")[2])
        second = stack.enter_context(ControllerProcess("--state-file", "/nonexistent/state.json", port=port))
        with second.http() as controller:
            assert until(lambda: workers(controller), "the worker is back") == before
            assert controller.get("/fleet/snapshot").json()["epoch"] > epoch


@pytest.mark.long
def test_a_worker_belongs_to_every_controller_it_is_told() -> None:
    with ControllerProcess() as one, ControllerProcess() as two:
        urls = ("--controller-url", one.url, "--controller-url", two.url)
        with one.http() as first, two.http() as second, WorkerProcess(*SIMULATED, *urls) as worker:
            known = until(lambda: workers(first), "the first knows the worker")
            assert until(lambda: workers(second), "the second knows the worker") == known
            two.stop()
            worker.stop()
            until(lambda: not workers(first), "the worker has left the first, though the second is gone")


def test_open_watches_end_at_once_when_the_controller_stops() -> None:
    with ControllerProcess() as process, ExitStack() as stack:
        watches: list[Watch] = []
        for _ in range(10):
            watches.append(stack.enter_context(watching(stack.enter_context(process.http()))))
            watches[-1].next()
        began = time.monotonic()
        assert process.stop(signal.SIGTERM) == 0
        took = time.monotonic() - began
        assert took < 5, f"{took} s: it waited for its watches"
        assert all(watch.ended() for watch in watches)
        assert "Traceback" not in process.output and "ERROR" not in process.output


def test_health_and_readiness_are_open_and_the_rest_has_one_error_form(controller: httpx.Client) -> None:
    assert controller.get("/health").json() == controller.get("/ready").json() == {"status": "ok"}
    for path in ("/docs", "/openapi.json", "/redoc", "/v1/models"):
        assert "/docs for" not in failed(controller.get(path), 404)["message"]
    failed(controller.post("/fleet/snapshot", json={}), 405)
    failed(controller.put("/fleet/workers/w", content=b"{", headers={"content-type": "application/json"}), 400)
    failed(controller.request("DELETE", "/fleet/servers", json={}), 400, param="url")
    deep = b"[" * 1000
    failed(controller.put("/fleet/workers/w", content=deep, headers={"content-type": "application/json"}), 400)


CALLS = [
    ("PUT", "/fleet/workers/evil"),
    ("DELETE", "/fleet/workers/w1"),
    ("POST", "/fleet/servers"),
    ("DELETE", "/fleet/servers?url=http://127.0.0.1:1"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_without_a_token_nothing_that_a_page_can_send_changes_anything(
    controller: httpx.Client, method: str, path: str, media_type: str | None
) -> None:
    beat(controller, worker_json("w1", "http://10.0.0.1:1"))
    with FakeOpenAI("m") as stranger:
        bodies = {"PUT": {"worker": worker_json("evil", stranger.url)}, "POST": {"url": stranger.url}}
        headers = {} if media_type is None else {"content-type": media_type}
        content = json.dumps(bodies.get(method, {})).encode()
        failed(controller.request(method, path, content=content, headers=headers), 415)
        assert not stranger.requests
    assert list(workers(controller)) == ["w1"]


@pytest.mark.parametrize(("method", "path"), [*CALLS, ("GET", "/fleet/snapshot"), ("GET", "/fleet/watch")])
def test_without_a_token_a_foreign_host_is_refused(controller: httpx.Client, method: str, path: str) -> None:
    headers = {"host": "rebound.example.com", "content-type": "application/json"}
    failed(controller.request(method, path, content=b"{}", headers=headers), 421)


def test_no_page_of_another_site_may_read(controller: httpx.Client) -> None:
    response = controller.get("/fleet/status", headers={"origin": "https://example.com"})
    assert not [name for name in response.headers if name.startswith("access-control")]
    preflight = {"origin": "https://example.com", "access-control-request-method": "PUT"}
    assert controller.options("/fleet/workers/w", headers=preflight).status_code >= 400


def test_with_a_token_every_call_but_health_needs_it(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    with (
        ControllerProcess("--fleet-token-file", str(token_file)) as process,
        process.http() as controller,
    ):
        assert controller.get("/health").status_code == controller.get("/ready").status_code == 200
        for authorization in (None, "Bearer wrong-token-of-the-fleet", f"Basic {TOKEN}", "Bearer"):
            headers = {} if authorization is None else {"authorization": authorization}
            for method, path in [
                *CALLS,
                *(("GET", f"/fleet/{name}") for name in ("snapshot", "status", "watch")),
                ("GET", "/nothing"),
            ]:
                error = failed(controller.request(method, path, json={}, headers=headers), 401)
                assert TOKEN not in error["message"]
        controller.headers["authorization"] = f"Bearer {TOKEN}"
        assert workers(controller) == {}
        env = {"CHATFLEET_FLEET_TOKEN": TOKEN, "CHATFLEET_CONTROLLER_URLS": process.url}
        with WorkerProcess(*SIMULATED, env=env):
            until(lambda: workers(controller), "the worker has registered with its token")
        assert TOKEN not in process.output
