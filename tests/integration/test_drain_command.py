"""`chatfleet drain` as a person types it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import run
from support.fake_openai import FakeOpenAI
from support.fleet import beat, statuses, until, worker_json, workers
from support.processes import ControllerProcess, GatewayProcess, WorkerProcess
from support.wire import RawConnection, failed, user

CHAT = "/v1/chat/completions"
PACED = ("--engine", "simulated", "--sim-itl-ms", "20")
SLOW = ("--engine", "simulated", "--sim-itl-ms", "200", "--drain-timeout", "600")
QUICK = ("--heartbeat-interval", "0.3", "--expiry", "60")
LONG = {"messages": user("hi"), "max_tokens": 150, "ignore_eos": True, "stream": True}
TOKEN = "a-token-of-the-fleet-0123456789"


@pytest.fixture(autouse=True)
def _no_fleet_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))


@pytest.fixture
def controller() -> Iterator[ControllerProcess]:
    with ControllerProcess(*QUICK) as process:
        yield process


def worker_id_of(controller: ControllerProcess, worker: WorkerProcess) -> str:
    """Once the controller knows it."""
    with controller.http() as http:
        return until(
            lambda: next((each["worker_id"] for each in workers(http).values() if each["url"] == worker.url), ""),
            "the worker",
        )


@pytest.mark.long
@pytest.mark.parametrize("name", ["id", "prefix", "url", "url/v1/"])
def test_a_worker_by_its_name_finishes_what_it_has_and_ends(controller: ControllerProcess, name: str) -> None:
    with WorkerProcess(*PACED, "--controller-url", controller.url) as worker:
        worker_id = worker_id_of(controller, worker)
        given = {"id": worker_id, "prefix": worker_id[:-3], "url": worker.url, "url/v1/": worker.url + "/v1/"}[name]
        with RawConnection(worker.url) as stream:
            stream.post(CHAT, LONG).read_head()
            finished = run("drain", given, "--controller-url", controller.url)
            assert finished.returncode == 0, finished
            assert f"{worker_id} at {worker.url} has left." in finished.stdout and finished.stderr == ""
            assert b"".join(stream.read_chunks()).endswith(b"data: [DONE]\n\n"), "it left before it had finished"
        until(lambda: not worker.alive(), "its end")
        assert worker.stop() == 0 and "Traceback" not in worker.output


@pytest.mark.long
def test_a_worker_that_drains_gets_nothing_new_and_is_shown_so(controller: ControllerProcess) -> None:
    with (
        WorkerProcess(*SLOW, "--controller-url", controller.url) as first,
        GatewayProcess(controllers=[controller], models=["simulated"]) as gateway,
        controller.http() as fleet,
        gateway.http() as http,
        RawConnection(first.url) as stream,
    ):
        worker_id = worker_id_of(controller, first)
        stream.post(CHAT, {**LONG, "max_tokens": 3000}).read_head()
        finished = run("drain", first.url, "--no-wait", "--controller-url", controller.url)
        assert finished.returncode == 0 and "gets no new requests" in finished.stdout, finished
        until(lambda: not gateway.served(), "that the gateway knows it")
        assert statuses(fleet)[worker_id]["draining"] and not workers(fleet)[worker_id]["ready"]
        assert "draining" in run("status", "--once", "--controller-url", controller.url).stdout
        shown = json.loads(run("status", "--json", "--controller-url", controller.url).stdout)
        assert shown["controllers"][0]["status"]["workers"][0]["draining"] is True
        assert 'state="draining"} 1.0' in fleet.get("/metrics").text
        with WorkerProcess("--engine", "simulated", "--controller-url", controller.url) as second:
            gateway.until_served(["simulated"])
            for _ in range(5):
                assert http.post(CHAT, json={"messages": user("hi"), "max_tokens": 1}).status_code == 200
            assert second.stop() == 0
        assert first.alive() and statuses(fleet)[worker_id]["load"]["running"] == 1


@pytest.mark.long
def test_one_that_does_not_leave_in_time_is_told_with_what_to_do(controller: ControllerProcess) -> None:
    with controller.http() as fleet:
        beat(fleet, worker_json("worker-of-another-age", "http://10.0.0.1:1", "m"), running=3)
        finished = run("drain", "worker-of", "--timeout", "0.2", "--controller-url", controller.url)
    assert finished.returncode == 1
    for word in ("has not left within 0.2 s", "3 running", "--timeout", "SIGTERM"):
        assert word in finished.stderr, finished


def test_a_heartbeat_of_one_that_drains_is_answered_with_it(controller: ControllerProcess) -> None:
    with controller.http() as fleet:
        worker = worker_json("w", "http://10.0.0.1:1", "m")
        assert beat(fleet, worker)["drain"] is False
        assert fleet.post("/fleet/workers/w/drain", json={}).json()["draining"] is True
        assert beat(fleet, worker)["drain"] is True
        assert beat(fleet, worker_json("w2", "http://10.0.0.1:2", "m"))["drain"] is False


def test_draining_is_refused_to_strangers_and_web_pages(controller: ControllerProcess) -> None:
    with controller.http() as fleet:
        beat(fleet, worker_json("w", "http://10.0.0.1:1", "m"))
        failed(fleet.post("/fleet/workers/w/drain", content=b""), 415)
        failed(fleet.post("/fleet/workers/w/drain", json={}, headers={"host": "evil.example"}), 421)
        failed(fleet.post("/fleet/workers/other/drain", json={}), 404, code="worker_not_found")
        assert workers(fleet)["w"]["ready"]
    with ControllerProcess(env={"CHATFLEET_FLEET_TOKEN": TOKEN}) as guarded, guarded.http() as fleet:
        failed(fleet.post("/fleet/workers/w/drain", json={}), 401)


def test_a_registered_server_is_unregistered(controller: ControllerProcess) -> None:
    at = ("--controller-url", controller.url)
    with FakeOpenAI("m") as stranger, controller.http() as fleet:
        assert run("register", stranger.url, *at).returncode == 0
        (server_id,) = workers(fleet)
        failed(fleet.post(f"/fleet/workers/{server_id}/drain", json={}), 400)
        finished = run("drain", stranger.url, *at)
        assert finished.returncode == 0 and "Unregistered" in finished.stdout and "runs on" in finished.stdout, finished
        assert workers(fleet) == {}


@pytest.mark.long
def test_what_names_no_worker_or_several_is_told_with_those_there_are(controller: ControllerProcess) -> None:
    at = ("--controller-url", controller.url)
    finished = run("drain", "w", *at)
    assert finished.returncode == 1 and "none at all" in finished.stderr, finished
    with controller.http() as fleet:
        for number in (1, 2):
            beat(fleet, worker_json(f"worker-{number}", f"http://10.0.0.{number}:1", "m"))
        for given, words in (("worker-", "may be any of"), ("other", "There is no worker other")):
            finished = run("drain", given, *at)
            assert finished.returncode == 1 and words in finished.stderr, finished
            for number in (1, 2):
                assert f"worker-{number} at http://10.0.0.{number}:1" in finished.stderr, finished
            assert len(finished.stderr.strip().splitlines()) == 1
        assert all(worker["ready"] for worker in workers(fleet).values())


@pytest.mark.long
def test_all_controllers_are_told_and_one_that_is_down_does_not_hinder(controller: ControllerProcess) -> None:
    dead = "http://127.0.0.1:9"
    with ControllerProcess(*QUICK) as other, other.http() as fleet:
        urls = ("--controller-url", controller.url, "--controller-url", other.url)
        with WorkerProcess("--engine", "simulated", *urls) as worker:
            worker_id = worker_id_of(controller, worker)
            worker_id_of(other, worker)
            finished = run("drain", worker_id, *urls, "--controller-url", dead)
            assert finished.returncode == 0, finished
            assert "Warning" in finished.stderr and dead in finished.stderr and "has left" in finished.stdout
            assert workers(fleet) == {}
            until(lambda: not worker.alive(), "its end")
    finished = run("drain", "worker", "--controller-url", dead)
    assert finished.returncode == 1 and dead in finished.stderr and "chatfleet controller" in finished.stderr
