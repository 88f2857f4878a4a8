"""How a gateway chooses among real workers, and what these tell of their load."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from support.command import refused, run
from support.fleet import statuses, until
from support.processes import ControllerProcess, GatewayProcess, WorkerProcess
from support.wire import PATIENCE_S, Json, user

CHAT = "/v1/chat/completions"
MANY = 60
"""Draws after which one that two workers share unequally has fallen on both."""

PACED = ("--engine", "simulated", "--sim-itl-ms", "20")


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess(*PACED, "--max-concurrency", "1", "--max-queue", "1") as process:
        yield process


def chat(**fields: object) -> Json:
    return {"messages": user("hi"), "max_tokens": 2, "ignore_eos": True, **fields}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat()),
        (CHAT, chat(stream=True)),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 2}),
        ("/v1/embeddings", {"input": "hi"}),
        ("/v1/tokenize", {"prompt": "hi"}),
        ("/v1/detokenize", {"tokens": [104]}),
        (CHAT, {"messages": "wrong"}),
    ],
)
def test_every_inference_answer_tells_the_load_with_the_request_that_is_answered(
    worker: WorkerProcess, path: str, body: Json
) -> None:
    with worker.http() as http:
        assert http.post(path, json=body).headers["x-chatfleet-load"] == "1,0"
        assert "x-chatfleet-load" not in http.get("/v1/models").headers


def test_the_load_of_a_busy_worker_tells_what_runs_and_what_waits(worker: WorkerProcess) -> None:
    with worker.http() as http, ExitStack() as streams:
        running = streams.enter_context(http.stream("POST", CHAT, json=chat(stream=True, max_tokens=2000)))
        assert running.headers["x-chatfleet-load"] == "1,0"
        waiting = threading.Thread(target=_abandon, args=(worker.url,))
        waiting.start()
        until(lambda: http.post("/v1/tokenize", json={"prompt": "hi"}).headers["x-chatfleet-load"] == "2,1", "2,1")
        refusal = http.post(CHAT, json=chat())
        assert refusal.status_code == 429 and refusal.headers["x-chatfleet-load"] == "2,1"
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()


def _abandon(url: str) -> None:
    """Ask, and wait until the queue has let it through."""
    response = httpx.post(url + CHAT, json=chat(max_tokens=1), timeout=PATIENCE_S)
    assert response.status_code == 200


@pytest.fixture(scope="module")
def controller() -> Iterator[ControllerProcess]:
    with ControllerProcess("--heartbeat-interval", "0.2") as process:
        yield process


@pytest.fixture(scope="module")
def fleet(controller: ControllerProcess) -> Iterator[list[WorkerProcess]]:
    """Two workers of one model."""
    member = ("--controller-url", controller.url, "--model-name", "m")
    with (
        WorkerProcess(*PACED, *member) as one,
        WorkerProcess(*PACED, *member, "--speed", "2.5") as other,
        controller.http() as http,
    ):
        until(lambda: len(statuses(http)) == 2, "two workers")
        yield [one, other]


@pytest.mark.long
def test_the_speed_of_a_worker_is_shown_where_one_has_another(
    controller: ControllerProcess, fleet: list[WorkerProcess]
) -> None:
    with controller.http() as http:
        speeds = {status["url"]: status["speed"] for status in statuses(http).values()}
        assert speeds == {fleet[0].url: 1.0, fleet[1].url: 2.5}
    shown = run("status", "--once", "--controller-url", controller.url).stdout
    assert "Speed" in shown and "2.5" in shown


def served_by(http: httpx.Client, body: Json, fleet: list[WorkerProcess], **headers: str) -> int:
    """Which of the workers gets a request: the one whose count of requests grows."""
    before = [_tokens(worker) for worker in fleet]
    response = http.post(CHAT, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})
    assert response.status_code == 200, response.text
    after = [_tokens(worker) for worker in fleet]
    (index,) = (number for number in range(len(fleet)) if after[number] != before[number])
    return index


def _tokens(worker: WorkerProcess) -> str:
    """A counter of the worker's that every generated token moves."""
    with worker.http() as http:
        lines = http.get("/metrics").text.splitlines()
    return next(line for line in lines if line.startswith("vllm:generation_tokens_total"))


@pytest.mark.long
def test_a_session_stays_with_one_worker_and_the_header_goes_before_the_user(
    controller: ControllerProcess, fleet: list[WorkerProcess]
) -> None:
    options = ("--policy", "random", "--policy", "m=session", "--session-header", "x-chat")
    with (
        GatewayProcess(*options, controllers=[controller], models=["m"]) as gateway,
        gateway.http() as http,
    ):
        homes: set[int] = set()
        for number in range(MANY):
            name = f"user-{number}"
            home = served_by(http, chat(user=name), fleet)
            homes.add(home)
            assert [served_by(http, chat(user=name), fleet) for _ in range(2)] == [home, home]
            assert served_by(http, chat(user="someone else"), fleet, x_chat=name) == home
            if number > 3 and len(homes) == 2:
                break
        assert homes == {0, 1}


@pytest.mark.long
def test_a_conversation_goes_where_its_prefix_is(controller: ControllerProcess, fleet: list[WorkerProcess]) -> None:
    with (
        GatewayProcess("--policy", "prefix_aware", controllers=[controller], models=["m"]) as gateway,
        gateway.http() as http,
    ):
        homes: set[int] = set()
        for number in range(MANY):
            messages = user(f"{number} " * 100)
            home = served_by(http, chat(messages=messages), fleet)
            homes.add(home)
            for turn in range(3):
                messages += [{"role": "assistant", "content": "yes"}, *user(f"and {turn}")]
                assert served_by(http, chat(messages=messages), fleet) == home
            if number > 3 and len(homes) == 2:
                break
        assert homes == {0, 1}


def test_round_robin_takes_turns(controller: ControllerProcess, fleet: list[WorkerProcess]) -> None:
    with (
        GatewayProcess(controllers=[controller], models=["m"], env={"CHATFLEET_POLICIES": "round_robin"}) as gateway,
        gateway.http() as http,
    ):
        turns = [served_by(http, chat(), fleet) for _ in range(4)]
        assert turns in ([0, 1, 0, 1], [1, 0, 1, 0])


def test_gateways_are_told_the_load_of_workers(controller: ControllerProcess, fleet: list[WorkerProcess]) -> None:
    """By heartbeats, of what came to a worker without any gateway."""
    with (
        fleet[0].http() as direct,
        controller.http() as http,
        ExitStack() as streams,
        http.stream("GET", "/fleet/watch", timeout=PATIENCE_S) as watch,
    ):
        for _ in range(3):
            streams.enter_context(direct.stream("POST", CHAT, json=chat(stream=True, max_tokens=2000)))
        (worker_id,) = (key for key, status in statuses(http).items() if status["url"] == fleet[0].url)
        for line in watch.iter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if event.get("loads", {}).get(worker_id) == {"running": 3, "waiting": 0}:
                    break
        else:
            pytest.fail("the watch ended")


@pytest.mark.parametrize("arguments", [("gateway", "--policy", "nonsense"), ("serve", "--policy", "m=nonsense")])
def test_an_unknown_policy_is_one_clear_error(arguments: tuple[str, ...]) -> None:
    refused(run(*arguments), "--policy", "prefix_aware", "power_of_two")


def test_a_speed_out_of_bounds_is_one_clear_error() -> None:
    refused(run("worker", "--speed", "0"), "--speed")
    refused(run("register", "http://h:1", "--speed", "1000"), "--speed")
