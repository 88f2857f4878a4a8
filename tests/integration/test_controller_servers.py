"""OpenAI-compatible servers of others as workers: taken in, lost, restored, remembered."""

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.fake_openai import FakeOpenAI, model_entry
from support.fleet import beat, statuses, until, watching, worker_json, workers
from support.processes import ControllerProcess, WorkerProcess
from support.wire import Json, failed

QUICK = ("--heartbeat-interval", "0.3", "--expiry", "1.5")
KEY = "sk-the-key-of-a-stranger"


@pytest.fixture(scope="module")
def quick() -> Iterator[ControllerProcess]:
    """A controller with short times."""
    with ControllerProcess(*QUICK) as process:
        yield process


@pytest.fixture
def controller(quick: ControllerProcess) -> Iterator[httpx.Client]:
    """It must outlive the test and never log the key. No server is left in it from other tests."""
    with quick.http() as http:
        yield http
        for status in statuses(http).values():
            unregister(http, status["url"])
    assert quick.alive()
    assert KEY not in quick.output and "Traceback" not in quick.output, quick.output


def register(controller: httpx.Client, url: str, **fields: object) -> Json:
    response = controller.post("/fleet/servers", json={"url": url, **fields})
    assert response.status_code == 200, response.text
    status: Json = response.json()
    return status


def unregister(controller: httpx.Client, url: str) -> httpx.Response:
    return controller.delete("/fleet/servers", params={"url": url}, headers={"content-type": "application/json"})


def refused(controller: httpx.Client, url: str, *words: str, **fields: object) -> None:
    error = failed(controller.post("/fleet/servers", json={"url": url, **fields}), 400)
    for word in (url.removesuffix("/v1"), *words):
        assert word in error["message"], error
    assert KEY not in error["message"]
    assert workers(controller) == statuses(controller) == {}


def test_a_stranger_becomes_a_worker(controller: httpx.Client) -> None:
    with FakeOpenAI(model_entry("m", max_model_len=8192), "n", api_key=KEY) as stranger:
        status = register(controller, stranger.url + "/v1/", api_key=KEY, allowed_fields=["top_a"])
        assert status["url"] == stranger.url and status["ready"] and status["model_names"] == ["m", "n"]
        (worker,) = workers(controller).values()
        assert worker["worker_id"] == status["worker_id"] and worker["kind"] == "openai"
        assert (worker["url"], worker["api_key"], worker["allowed_fields"]) == (stranger.url, KEY, ["top_a"])
        m = {"id": "m", "created": 1700000000, "owned_by": "stranger", "context_length": 8192}
        assert worker["models"][0] == m
        assert KEY not in controller.get("/fleet/status").text
        assert stranger.requests[0]["authorization"] == f"Bearer {KEY}"


def test_only_the_named_models_are_used(controller: httpx.Client) -> None:
    with FakeOpenAI("a", "b", "c") as stranger:
        assert register(controller, stranger.url, model_names=["c", "a"])["model_names"] == ["a", "c"]
        unregister(controller, stranger.url)
        refused(controller, stranger.url, "'d'", "'e'", model_names=["a", "d", "e"])


def test_what_cannot_be_a_worker_is_refused_and_says_why(controller: httpx.Client) -> None:
    with FakeOpenAI("m", api_key=KEY) as stranger:
        refused(controller, stranger.url, "API key", "401")
        refused(controller, stranger.url, "401", api_key=KEY + "x")
        stranger.api_key = None
        refused(controller, stranger.url + "/deeper", "404")
        stranger.answer = (302, {"location": "http://127.0.0.1:1/"}, b"")
        refused(controller, stranger.url, "redirect")
        stranger.answer = (200, {}, b"<html>hello</html>")
        refused(controller, stranger.url, "not JSON")
        stranger.answer = (200, {}, b'{"models": []}')
        refused(controller, stranger.url, "not OpenAI-compatible")
        stranger.answer = (200, {}, b'{"data": [' + b" " * (1024 * 1024) + b"]}")
        refused(controller, stranger.url, "larger than")
        stranger.answer = (500, {}, KEY.encode())
        refused(controller, stranger.url, "500", api_key=KEY)
    refused(controller, stranger.url, "cannot be reached", "refused")
    refused(controller, "http://no.such.host.invalid", "cannot be reached")


@pytest.mark.long
def test_one_that_never_answers_is_refused_in_bounded_time(controller: httpx.Client) -> None:
    with FakeOpenAI("m") as stranger:
        stranger.open.clear()
        refused(controller, stranger.url, "did not answer within 5 s")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": "nonsense"},
        {"url": "http://h:1?x=1"},
        {"url": "http://h:1", "model_names": [""]},
        {"url": "http://h:1", "colour": "red"},
    ],
)
def test_a_description_that_makes_no_sense_is_refused(controller: httpx.Client, body: Json) -> None:
    assert failed(controller.post("/fleet/servers", json=body), 400)["param"]


def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(controller: httpx.Client) -> None:
    body = {"url": "http://h:1", "api_key": f"{KEY} and a space"}
    assert KEY not in failed(controller.post("/fleet/servers", json=body), 400, param="api_key")["message"]


def test_one_that_goes_away_expires_and_comes_back(controller: httpx.Client, quick: ControllerProcess) -> None:
    with FakeOpenAI("m", api_key=KEY) as stranger:
        worker_id = register(controller, stranger.url, api_key=KEY)["worker_id"]
        with watching(controller) as watch, quick.http() as other:
            watch.next()
            stranger.stop()
            gone = watch.next_change()
            assert (gone["worker_id"], gone["reason"]) == (worker_id, "expired")
            status = statuses(other)[worker_id]
            assert status["away"] and not status["ready"] and status["silent_s"] >= 1.5
            assert "cannot be reached" in status["problem"] and KEY not in json.dumps(status)
            stranger.start()
            assert watch.next_change()["worker"]["worker_id"] == worker_id
            status = statuses(other)[worker_id]
            assert status["ready"] and not status["away"] and status["problem"] is None


def test_its_models_are_followed(controller: httpx.Client, quick: ControllerProcess) -> None:
    with FakeOpenAI("a", "b") as stranger:
        worker_id = register(controller, stranger.url, model_names=["a", "b"])["worker_id"]
        with watching(controller) as watch, quick.http() as other:
            watch.next()
            stranger.models = [model_entry("b", max_model_len=7), model_entry("new")]
            changed = watch.next_change()["worker"]
            assert [(model["id"], model["context_length"]) for model in changed["models"]] == [("b", 7)]
            assert "'a'" in statuses(other)[worker_id]["problem"]
            stranger.models = []
            changed = watch.next_change()["worker"]
            assert not changed["ready"] and changed["models"] == []
            assert "none" in statuses(other)[worker_id]["problem"]


def test_one_without_a_model_is_registered_and_not_ready(controller: httpx.Client) -> None:
    with FakeOpenAI() as stranger:
        status = register(controller, stranger.url)
        assert not status["ready"] and "no model" in status["problem"]
        stranger.models = [model_entry("m")]
        until(lambda: statuses(controller)[status["worker_id"]]["ready"], "its first model makes it ready")


@pytest.mark.long
def test_one_that_hangs_slows_down_no_other(controller: httpx.Client) -> None:
    with FakeOpenAI("a") as hanging, FakeOpenAI("b") as well:
        stuck = register(controller, hanging.url)["worker_id"]
        fine = register(controller, well.url)["worker_id"]
        hanging.open.clear()
        until(lambda: stuck not in workers(controller), "the one that hangs expires")
        asked, began = len(hanging.requests), time.monotonic()
        until(lambda: len(hanging.requests) >= asked + 3, "the one that hangs is asked again")
        assert (len(hanging.requests) - asked - 1) * 0.3 <= time.monotonic() - began
        assert fine in workers(controller)
        assert "did not answer within" in statuses(controller)[stuck]["problem"]


def test_registering_again_replaces(controller: httpx.Client) -> None:
    with FakeOpenAI("a", "b") as stranger:
        first = register(controller, stranger.url)
        second = register(controller, stranger.url + "/v1", model_names=["b"])
        assert first["worker_id"] == second["worker_id"] and second["model_names"] == ["b"]
        assert len(statuses(controller)) == 1
        stranger.api_key = KEY
        assert controller.post("/fleet/servers", json={"url": stranger.url}).status_code == 400
        assert [status["model_names"] for status in statuses(controller).values()] == [["b"]]


def test_unregistering_takes_it_out_at_once_and_for_good(controller: httpx.Client) -> None:
    with FakeOpenAI("m") as stranger, FakeOpenAI("n") as other:
        worker_id = register(controller, stranger.url)["worker_id"]
        assert unregister(controller, stranger.url + "/v1").status_code == 200
        assert workers(controller) == statuses(controller) == {}
        register(controller, other.url)
        asked, marker = len(stranger.requests), len(other.requests)
        until(lambda: len(other.requests) > marker + 2, "others are probed on")
        assert len(stranger.requests) <= asked + 1 and worker_id not in statuses(controller)
        failed(unregister(controller, stranger.url), 404, code="server_not_found")
        failed(unregister(controller, "nonsense"), 400, param="url")


def test_a_worker_of_ours_that_speaks_for_itself_is_heard_first(controller: httpx.Client) -> None:
    with FakeOpenAI("m") as stranger:
        server_id = register(controller, stranger.url)["worker_id"]
        beat(controller, worker_json("own", stranger.url, "m"))
        asked = len(stranger.requests)
        until(lambda: len(stranger.requests) > asked + 2, "it is still probed")
        assert list(workers(controller)) == ["own"]
        assert "own" in statuses(controller)[server_id]["problem"]
        error = failed(controller.post("/fleet/servers", json={"url": stranger.url}), 400)
        assert "own" in error["message"]
        until(lambda: list(workers(controller)) == [server_id], "it is back when the worker has gone silent")


def test_a_worker_of_ours_can_be_registered_like_a_stranger(controller: httpx.Client) -> None:
    with WorkerProcess("--engine", "simulated", "--model-name", "m") as worker:
        assert register(controller, worker.url)["model_names"] == ["m"]
        (known,) = workers(controller).values()
        assert known["kind"] == "openai" and known["models"][0]["context_length"] > 0
    token = "the-token-of-another-fleet-01234"
    with WorkerProcess("--engine", "simulated", env={"CHATFLEET_FLEET_TOKEN": token}) as worker:
        failed(controller.post("/fleet/servers", json={"url": worker.url}), 400)
        assert register(controller, worker.url, api_key=token)["ready"]


def test_what_is_registered_survives_a_restart(tmp_path: Path) -> None:
    state_file = tmp_path / "state" / "controller.json"
    arguments = (*QUICK, "--state-file", str(state_file))
    with FakeOpenAI("m", api_key=KEY) as stranger, FakeOpenAI("n") as away:
        with ControllerProcess(*arguments) as first, first.http() as controller:
            worker_id = register(controller, stranger.url, api_key=KEY)["worker_id"]
            register(controller, away.url)
            assert stat.S_IMODE(state_file.stat().st_mode) == 0o600
            assert KEY not in first.output
            first.stop(signal.SIGKILL)
        away.stop()
        with ControllerProcess(*arguments) as second, second.http() as controller:
            until(lambda: list(workers(controller)) == [worker_id], "it is known again")
            (gone,) = (status for status in statuses(controller).values() if status["away"])
            assert gone["url"] == away.url and gone["silent_s"] is None
            assert unregister(controller, away.url).status_code == 200
        with ControllerProcess(*arguments) as third, third.http() as controller:
            until(lambda: list(statuses(controller)) == [worker_id], "what was unregistered stays so")
            assert KEY not in third.output


def test_a_broken_state_file_is_moved_aside_and_said(tmp_path: Path) -> None:
    state_file = tmp_path / "controller.json"
    state_file.write_text("{broken")
    with ControllerProcess("--state-file", str(state_file)) as process, process.http() as controller:
        assert statuses(controller) == {}
        assert str(state_file) in process.output and "broken" in process.output
    assert (tmp_path / "controller.json.broken").read_text() == "{broken"


def test_a_controller_on_a_passing_port_remembers_nothing(tmp_path: Path) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path)}
    with FakeOpenAI("m") as stranger, ControllerProcess(env=env) as process, process.http() as controller:
        register(controller, stranger.url)
    assert os.listdir(tmp_path) == []


@pytest.mark.long
def test_a_controller_on_a_port_of_its_own_remembers_by_it(tmp_path: Path) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path)}
    with FakeOpenAI("m") as stranger:
        with ControllerProcess() as process:
            port = int(process.url.rpartition(":")[2])
        with ControllerProcess(port=port, env=env) as process, process.http() as controller:
            register(controller, stranger.url)
    assert (tmp_path / "chatfleet" / f"controller-{port}.json").is_file()
