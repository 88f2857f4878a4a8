"""A fleet under load, while its parts come, leave, die and come back."""

import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import httpx
import openai
import pytest

from support.fake_openai import FakeOpenAI
from support.fleet import beat, statuses, until, worker_json
from support.processes import CommandProcess, ControllerProcess, GatewayProcess, WorkerProcess, endpoint
from support.wire import PATIENCE_S, Json, chat_texts, chunks, error_object, failed, user

CHAT = "/v1/chat/completions"
TOKEN = "the-token-of-this-fleet"
QUICK = ("--heartbeat-interval", "0.2", "--expiry", "1.5")
SOON = ("--retry-timeout", "0.3")
"""Of a gateway whose clients are told soon that nobody is there."""

SIMULATED = ("--engine", "simulated", "--sim-itl-ms", "20")


def joining(*controllers: CommandProcess) -> tuple[str, ...]:
    return tuple(option for controller in controllers for option in ("--controller-url", controller.url))


def request(model: str, *, tokens: int = 4, stream: bool = False) -> Json:
    return {"model": model, "messages": user("hi"), "max_tokens": tokens, "ignore_eos": True, "stream": stream}


def running(controller: httpx.Client) -> dict[str, int]:
    """How many choices each worker generates, by its URL."""
    return {status["url"]: status["load"]["running"] for status in statuses(controller).values()}


class Load:
    """Clients in threads: streams that have to go well, and one that asks again and again."""

    def __init__(self, gateway: GatewayProcess, model: str) -> None:
        self._url = gateway.url + CHAT
        self._model = model
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=64)
        self._streams: list[Future[str]] = []
        self._asking: Future[int] | None = None

    def start_streams(self, count: int, *, tokens: int) -> None:
        self._streams += [self._pool.submit(self._stream, tokens) for _ in range(count)]

    def texts(self) -> list[str]:
        """Of all streams, when they have ended."""
        return [stream.result(timeout=PATIENCE_S) for stream in self._streams]

    def keep_asking(self) -> None:
        self._asking = self._pool.submit(self._ask)

    def asked(self) -> int:
        """Ends the asking; how many requests have all gone well."""
        self._stop.set()
        assert self._asking is not None
        return self._asking.result(timeout=PATIENCE_S)

    def _stream(self, tokens: int) -> str:
        body = request(self._model, tokens=tokens, stream=True)
        parts = chunks(httpx.post(self._url, json=body, timeout=PATIENCE_S))
        return chat_texts(parts)[0]

    def _ask(self) -> int:
        count = 0
        with httpx.Client(timeout=PATIENCE_S) as http:
            while not self._stop.is_set():
                response = http.post(self._url, json=request(self._model))
                assert response.status_code == 200, response.text
                count += 1
        return count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)


@pytest.mark.long
def test_a_second_worker_joins_under_load_and_takes_its_share() -> None:
    with (
        ControllerProcess(*QUICK) as controller,
        controller.http() as fleet,
        WorkerProcess("m", *SIMULATED, *joining(controller)) as first,
        GatewayProcess(controllers=[controller], models=["m"]) as gateway,
        Load(gateway, "m") as load,
    ):
        load.start_streams(8, tokens=300)
        until(lambda: running(fleet)[first.url] == 8, "8 streams at the first")
        with WorkerProcess("m", *SIMULATED, *joining(controller)) as second:
            until(lambda: second.url in running(fleet), "the second in the fleet")
            load.start_streams(8, tokens=300)
            until(lambda: running(fleet)[second.url] == 8, "8 streams at the second")
            texts = load.texts()
    assert len(texts) == 16 and len(set(texts)) == 1 and len(texts[0]) == 300


@pytest.mark.long
def test_a_killed_worker_leaves_the_view_and_its_requests_fail_cleanly() -> None:
    with (
        ControllerProcess(*QUICK) as controller,
        controller.http() as fleet,
        WorkerProcess("stays", *SIMULATED, *joining(controller)),
        WorkerProcess("dies", *SIMULATED, *joining(controller)) as worker,
        GatewayProcess(*SOON, controllers=[controller], models=["stays", "dies"]) as gateway,
        gateway.http() as http,
    ):
        with http.stream("POST", CHAT, json=request("dies", tokens=1000, stream=True)) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            worker.stop(signal.SIGKILL)
            *_, last, end = lines
        assert end == "" and error_object(last.removeprefix("data: "))["code"] == "worker_failed"
        for stream in (False, True):  # in the view still, or gone from it already
            response = http.post(CHAT, json=request("dies", stream=stream))
            assert error_object(response.content)["type"] == "server_error" and response.status_code in (502, 503)
        until(lambda: gateway.served() == {"stays"}, "the model leaves the list")
        assert len(statuses(fleet)) == 1
        error = failed(http.post(CHAT, json=request("dies")), 503, code="no_worker_available")
        assert "dies" in error["message"]
        assert http.post(CHAT, json=request("stays")).status_code == 200
        with WorkerProcess("dies", *SIMULATED, *joining(controller)):
            gateway.until_served(["dies"])
            assert http.post(CHAT, json=request("dies")).status_code == 200


@pytest.mark.long
def test_a_worker_that_falls_silent_does_not_keep_its_requests_for_ever() -> None:
    """Stopped, it looks like a host that has lost its power: its connections stay, and say nothing."""
    with (
        ControllerProcess(*QUICK) as controller,
        WorkerProcess("m", *SIMULATED, *joining(controller)) as worker,
        GatewayProcess(*SOON, controllers=[controller], models=["m"]) as gateway,
        gateway.http() as http,
        ThreadPoolExecutor() as pool,
    ):
        with http.stream("POST", CHAT, json=request("m", tokens=2000, stream=True)) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            os.kill(worker.pid, signal.SIGSTOP)
            try:
                whole = pool.submit(http.post, CHAT, json=request("m"))
                *_, last, _ = lines
                assert error_object(last.removeprefix("data: "))["code"] == "worker_failed"
                failed(whole.result(timeout=PATIENCE_S), 502, code="worker_failed")
            finally:
                os.kill(worker.pid, signal.SIGCONT)
        gateway.until_served(["m"])
        assert http.post(CHAT, json=request("m")).status_code == 200


@pytest.mark.long
def test_whoever_takes_the_port_of_a_dead_worker_is_not_it_and_gets_no_token() -> None:
    env = {"CHATFLEET_FLEET_TOKEN": TOKEN}
    with (
        FakeOpenAI() as stranger,
        ControllerProcess(*QUICK, env=env) as controller,
        GatewayProcess(controllers=[controller], env=env) as gateway,
        httpx.Client(base_url=controller.url, headers={"authorization": f"Bearer {TOKEN}"}) as fleet,
    ):
        for answer in (b"[" * 200_000, b'{"worker_id": "another"}', b"{}", b"x" * 10**6):
            stranger.answer = 200, {}, answer
            beat(fleet, worker_json("w", stranger.url, "m"))
            gateway.until_served(["m"])
            until(lambda: not gateway.served(), "it is gone")
        assert len(stranger.requests) >= 4
        assert not any("authorization" in headers for headers in stranger.requests)


def refuses(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/health").status_code != 200)
    except httpx.TransportError:
        return True


@pytest.mark.parametrize("through", ["worker", "gateway"])
@pytest.mark.long
def test_streams_that_end_with_their_server_are_told_and_leave_no_trace(through: str) -> None:
    with endpoint(through, "m", *SIMULATED) as process, process.http() as http:
        with http.stream("POST", CHAT, json=request("m", tokens=2000, stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(process.pid, signal.SIGTERM)
            until(lambda: refuses(process.url), "it takes no more")
            os.kill(process.pid, signal.SIGTERM)
            *_, last, _ = lines
        assert error_object(last.removeprefix("data: "))["code"] == "shutting_down"
        until(lambda: not process.alive(), "its end")
        assert process.stop() == 0
    assert "Traceback" not in process.output and "ERROR" not in process.output, process.output


@pytest.mark.long
def test_no_request_notices_that_the_controller_is_killed_and_restarted(free_port: int) -> None:
    with (
        ControllerProcess(*QUICK, port=free_port) as controller,
        WorkerProcess("m", *SIMULATED, *joining(controller)) as worker,
        GatewayProcess(controllers=[controller], models=["m"]) as gateway,
        Load(gateway, "m") as load,
    ):
        with controller.http() as fleet:
            load.start_streams(50, tokens=400)
            load.keep_asking()
            until(lambda: running(fleet)[worker.url] >= 50, "50 streams")
        controller.stop(signal.SIGKILL)
        time.sleep(2)  # longer than the expiry
        with ControllerProcess(*QUICK, port=free_port) as again, again.http() as fleet:
            until(lambda: worker.url in running(fleet), "the worker registers again")
            texts = load.texts()
            time.sleep(2)  # past the expiry of whatever the new controller did not know
            assert load.asked() > 10
    assert len(texts) == 50 and len(set(texts)) == 1 and len(texts[0]) == 400


@pytest.mark.long
def test_with_two_controllers_one_may_be_lost() -> None:
    with (
        ControllerProcess(*QUICK) as first,
        ControllerProcess(*QUICK) as second,
        WorkerProcess("m", *SIMULATED, *joining(first, second)) as worker,
        GatewayProcess(controllers=[first, second], models=["m"]) as gateway,
        Load(gateway, "m") as load,
    ):
        for controller in (first, second):
            with controller.http() as fleet:
                until(lambda fleet=fleet: worker.url in running(fleet), "the worker is known")  # type: ignore[misc]
        load.keep_asking()
        first.stop(signal.SIGKILL)
        with WorkerProcess("late", *SIMULATED, *joining(first, second)):
            gateway.until_served(["m", "late"])
            with (
                GatewayProcess(controllers=[first, second], models=["m", "late"]) as other,
                other.http() as http,
            ):
                assert http.post(CHAT, json=request("late")).status_code == 200
        until(lambda: gateway.served() == {"m"}, "what has deregistered is gone")
        assert load.asked() > 10


@pytest.mark.long
def test_a_worker_that_is_told_to_end_finishes_what_it_has_and_gets_nothing_more() -> None:
    with (
        ControllerProcess(*QUICK) as controller,
        controller.http() as fleet,
        WorkerProcess("m", *SIMULATED, *joining(controller)) as leaves,
        WorkerProcess("m", *SIMULATED, *joining(controller)) as stays,
        GatewayProcess(controllers=[controller], models=["m"]) as gateway,
        Load(gateway, "m") as load,
    ):
        until(lambda: len(running(fleet)) == 2, "both are known")
        load.start_streams(10, tokens=150)
        load.keep_asking()
        until(lambda: running(fleet)[leaves.url] >= 5, "streams at the one that leaves")
        assert leaves.stop() == 0
        assert list(running(fleet)) == [stays.url]
        texts = load.texts()
        assert load.asked() > 0
    assert len(texts) == 10 and len(set(texts)) == 1


@pytest.mark.long
def test_a_fleet_with_a_token_knows_its_own_and_nobody_else() -> None:
    ours, theirs = {"CHATFLEET_FLEET_TOKEN": TOKEN}, {"CHATFLEET_FLEET_TOKEN": "some-other-fleet's-token"}
    with (
        ControllerProcess(*QUICK, env=ours) as controller,
        WorkerProcess("ours", *SIMULATED, *joining(controller), env=ours) as worker,
        WorkerProcess("theirs", *SIMULATED, *joining(controller), env=theirs) as stranger,
        GatewayProcess(controllers=[controller], models=["ours"], env=ours) as gateway,
        GatewayProcess(*SOON, controllers=[controller], env=theirs) as outsider,
        gateway.http() as http,
    ):
        until(lambda: "refused (401)" in stranger.output and "refused (401)" in outsider.output, "they say why")
        assert gateway.served() == {"ours"} and outsider.served() == set()
        assert http.post(CHAT, json=request("ours")).status_code == 200
        with outsider.http() as client:
            failed(client.post(CHAT, json=request("ours")), 503, code="no_worker_available")
            failed(client.get("/ready"), 503, code="no_worker_available")
        with worker.http() as client:
            failed(client.post(CHAT, json=request("ours")), 401, code="invalid_api_key")
            assert client.get("/health").status_code == 200
        with openai.OpenAI(base_url=f"{worker.url}/v1", api_key=TOKEN) as sdk:
            assert sdk.models.list().data[0].id == "ours"
        assert not any(TOKEN in part.output for part in (controller, worker, gateway, stranger, outsider))


@pytest.mark.long
def test_a_server_that_is_not_ours_goes_and_comes_back() -> None:
    with (
        FakeOpenAI("theirs") as fake,
        ControllerProcess(*QUICK) as controller,
        controller.http() as fleet,
        GatewayProcess(*SOON, controllers=[controller]) as gateway,
        gateway.http() as http,
    ):
        assert fleet.post("/fleet/servers", json={"url": fake.url}).status_code == 200
        gateway.until_served(["theirs"])
        assert http.post(CHAT, json=request("theirs")).status_code == 200
        fake.stop()
        until(lambda: not gateway.served(), "it is left out")
        failed(http.post(CHAT, json=request("theirs")), 503, code="no_worker_available")
        fake.start()
        gateway.until_served(["theirs"])
        assert (
            fleet.delete(
                "/fleet/servers", params={"url": fake.url}, headers={"content-type": "application/json"}
            ).status_code
            == 200
        )
        until(lambda: not gateway.served(), "it is unregistered")
