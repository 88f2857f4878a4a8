"""/metrics of real processes, read as Prometheus reads it, after requests that are known."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from support.fleet import beat, until, watching, worker_json
from support.metrics import Scraped, scrape
from support.processes import CommandProcess, ControllerProcess, GatewayProcess, WorkerProcess
from support.raw_upstream import ONE_TRY
from support.serve import ServeProcess
from support.wire import Json, RawConnection, chunks, failed, user

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TOKENIZE = "/v1/tokenize"
TOKEN = "a-token-that-is-long-enough"
MODEL = "simulated"
ENGINE = {"model_name": MODEL, "engine": "0"}
AN_HOUR = ("--engine", "simulated", "--sim-itl-ms", "3600000")
PACED = ("--engine", "simulated", "--sim-itl-ms", "10")
"""So that tokens do not come all at once."""
COMPLETION: Json = {"model": MODEL, "prompt": "hi", "max_tokens": 5, "ignore_eos": True}
CONVERSATION: Json = {"model": MODEL, "messages": user("Hello there"), "max_tokens": 8, "ignore_eos": True}
STREAM: Json = {**CONVERSATION, "stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess(*PACED) as process:
        yield process


@pytest.fixture
def controller() -> Iterator[ControllerProcess]:
    with ControllerProcess() as process:
        yield process


def usage_of(response: httpx.Response) -> Json:
    assert response.status_code == 200, response.text
    usage: Json = chunks(response)[-1]["usage"] if b"data: " in response.content else response.json()["usage"]
    return usage


def requests(scraped: Scraped, endpoint: str, status: int, model: str = MODEL) -> float:
    labels = {"model_name": model, "endpoint": endpoint, "status": str(status)}
    return scraped.total("chatfleet:requests_total", **labels)


def known_requests(http: httpx.Client) -> tuple[float, float]:
    """Six of them that go well, and three that do not. The tokens in and out of those that tell of theirs."""
    usages = [usage_of(http.post(CHAT, json=body)) for body in (CONVERSATION, CONVERSATION, STREAM)]
    usages.append(usage_of(http.post(COMPLETIONS, json={**COMPLETION, "n": 2})))
    usages.append(usage_of(http.post(EMBEDDINGS, json={"model": MODEL, "input": ["one", "two words"]})))
    assert http.post(TOKENIZE, json={"model": MODEL, "prompt": "hi"}).status_code == 200
    failed(http.post(CHAT, json={**CONVERSATION, "temperature": -1}), 400)
    failed(http.post(CHAT, json={**CONVERSATION, "model": "nobody's"}), 404)
    failed(http.get("/v1/nothing"), 404)
    return sum(usage["prompt_tokens"] for usage in usages), sum(usage.get("completion_tokens", 0) for usage in usages)


def check_known_requests(scraped: Scraped, tokens: tuple[float, float], *, at_worker: bool) -> None:
    assert requests(scraped, CHAT, 200) == 3
    assert requests(scraped, COMPLETIONS, 200) == 1
    assert requests(scraped, EMBEDDINGS, 200) == 1
    assert requests(scraped, TOKENIZE, 200) == 1
    assert scraped.total("chatfleet:requests_total", endpoint=CHAT, status="400") == 1
    assert requests(scraped, CHAT, 404, model="") == 1
    assert requests(scraped, "", 404, model="") == 1
    assert scraped.label_values("model_name") == {"", MODEL}, "a name that nobody serves is no label"
    assert scraped.label_values("endpoint") <= {"", CHAT, COMPLETIONS, EMBEDDINGS, TOKENIZE, "/v1/models"}
    labels = ENGINE if at_worker else {"model_name": MODEL}
    assert scraped.value("vllm:prompt_tokens_total", **labels) == tokens[0]
    assert scraped.value("vllm:generation_tokens_total", **labels) == tokens[1]
    assert scraped.value("vllm:e2e_request_latency_seconds_count", **labels) == 4
    assert scraped.value("vllm:time_to_first_token_seconds_count", **labels) == (4 if at_worker else 1)
    assert scraped.value("vllm:inter_token_latency_seconds_count", **labels) > 0
    assert scraped.value("chatfleet:request_duration_seconds_count", model_name=MODEL, endpoint=TOKENIZE) == 1
    assert scraped.total("chatfleet:streams_broken_total") == 0


# Worker


def test_a_worker_tells_of_the_requests_that_it_had(worker: WorkerProcess) -> None:
    with worker.http() as http:
        before = scrape(http)
        assert before.value("vllm:generation_tokens_total", **ENGINE) == 0, "it is there before the first request"
        tokens = known_requests(http)
        scraped = scrape(http)
    check_known_requests(scraped, tokens, at_worker=True)
    assert scraped.total("chatfleet:requests_total") == 9, "scrapes and probes are no requests"
    assert scraped.value("vllm:request_success_total", **ENGINE, finished_reason="length") == 5, "one for each choice"
    assert scraped.value("vllm:request_success_total", **ENGINE, finished_reason="error") == 0
    for name in ("queue_time", "prefill_time", "decode_time", "inference_time"):
        assert scraped.value(f"vllm:request_{name}_seconds_count", **ENGINE) == 5
    assert scraped.value("vllm:request_generation_tokens_sum", **ENGINE) == tokens[1]
    assert scraped.value("vllm:prefix_cache_hits_total", **ENGINE) > 0, "the same conversation came three times"
    assert scraped.value("vllm:num_requests_running", **ENGINE) == 0
    assert scraped.total("process_resident_memory_bytes") > 0
    assert scraped.total("chatfleet:build_info") == 1


def test_all_names_of_a_workers_model_count_as_its_first() -> None:
    arguments = ("--engine", "simulated", "--model-name", "first", "--model-name", "second")
    with WorkerProcess(*arguments) as worker, worker.http() as http:
        for name in ("first", "second"):
            assert http.post(COMPLETIONS, json={**COMPLETION, "model": name}).status_code == 200
        assert requests(scrape(http), COMPLETIONS, 200, model="first") == 2


def test_a_worker_tells_who_runs_who_waits_and_who_left() -> None:
    with WorkerProcess(*AN_HOUR, "--max-concurrency", "1", "--max-queue", "1") as worker, worker.http() as http:
        clients = [RawConnection(worker.url).post(CHAT, STREAM) for _ in range(2)]
        states = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        until(lambda: [scrape(http).value(state, **ENGINE) for state in states] == [1, 1], "one running, one waiting")
        failed(http.post(CHAT, json=CONVERSATION), 429)
        for client in clients:
            client.close()
        until(lambda: [scrape(http).value(state, **ENGINE) for state in states] == [0, 0], "both gone")
        scraped = scrape(http)
    assert scraped.value("vllm:request_success_total", **ENGINE, finished_reason="abort") == 2
    assert requests(scraped, CHAT, 429) == 1
    assert requests(scraped, CHAT, 499) == 2
    assert scraped.total("chatfleet:streams_broken_total") == 0, "a client's leaving breaks nothing"


def test_a_stream_that_breaks_counts_as_broken_under_the_status_that_it_began_with() -> None:
    with WorkerProcess(*AN_HOUR) as worker, worker.http() as http:
        with http.stream("POST", CHAT, json=STREAM) as response:
            lines = response.iter_lines()
            next(lines)
            (engine,) = psutil.Process(worker.pid).children()
            engine.kill()
            assert "error" in "".join(lines)
        until(lambda: requests(scrape(http), CHAT, 200) == 1, "the request is over")
        scraped = scrape(http)
        assert scraped.value("chatfleet:streams_broken_total", model_name=MODEL) == 1
        assert scraped.value("vllm:request_success_total", **ENGINE, finished_reason="error") == 1


def test_metrics_of_workers_and_controllers_are_for_those_with_the_token() -> None:
    env = {"CHATFLEET_FLEET_TOKEN": TOKEN}
    with ControllerProcess(env=env) as controller, WorkerProcess("--engine", "simulated", env=env) as worker:
        for process in (controller, worker):
            with process.http() as http:
                failed(http.get("/metrics"), 401)
                http.headers["authorization"] = f"Bearer {TOKEN}"
                scrape(http)
                assert http.head("/metrics").status_code == 200
                failed(http.post("/metrics", json={}), 405)


# Controller


def test_a_controller_tells_of_its_fleet(controller: ControllerProcess) -> None:
    with controller.http() as http:
        empty = scrape(http)
        assert empty.total("chatfleet:fleet_workers") == 0
        for _ in range(3):
            beat(http, worker_json("worker-1", "http://127.0.0.1:1", "m"))
        beat(http, worker_json("worker-2", "http://127.0.0.1:2", "m", ready=False))
        with watching(http) as watch:
            watch.next()
            with controller.http() as other:
                scraped = scrape(other)
        until(lambda: scrape(http).value("chatfleet:watchers") == 0, "the watcher's leaving")
        failed(http.get("/nowhere"), 404)
        last = scrape(http)
    states = {state: scraped.value("chatfleet:fleet_workers", state=state) for state in ("ready", "not_ready", "away")}
    assert states == {"ready": 1, "not_ready": 1, "away": 0}
    assert scraped.value("chatfleet:heartbeats_total") == 4
    assert scraped.value("chatfleet:fleet_changes_total") == 2
    assert scraped.value("chatfleet:watchers") == 1
    assert requests(scraped, "/fleet/workers", 200, model="") == 4, "ids are no endpoints"
    assert requests(last, "/fleet/watch", 499, model="") == 1, "watches end when their clients leave"
    assert requests(last, "", 404, model="") == 1
    assert scraped.total("chatfleet:build_info") == 1


# Gateway


def fleet_gateway(
    controller: ControllerProcess, *arguments: str, models: tuple[str, ...] = (MODEL,), **more: str
) -> GatewayProcess:
    return GatewayProcess(*arguments, controllers=[controller], models=models, **more)


@pytest.fixture
def fleet_worker(controller: ControllerProcess) -> Iterator[WorkerProcess]:
    with WorkerProcess(*PACED, "--controller-url", controller.url) as process:
        yield process


def test_a_gateway_tells_of_the_requests_that_it_had(
    controller: ControllerProcess, fleet_worker: WorkerProcess
) -> None:
    with fleet_gateway(controller) as gateway, gateway.http() as http:
        tokens = known_requests(http)
        scraped = scrape(http)
    check_known_requests(scraped, tokens, at_worker=False)
    assert scraped.value("chatfleet:workers", model_name=MODEL) == 1
    assert scraped.value("chatfleet:upstream_connections") >= 1
    assert scraped.total("chatfleet:requests_in_flight") == 0
    assert scraped.total("chatfleet:retries_total") == 0
    assert not scraped.label_values("process")


@pytest.mark.long
def test_a_gateway_tells_what_is_in_flight_and_of_clients_that_left(controller: ControllerProcess) -> None:
    with (
        WorkerProcess(*AN_HOUR, "--controller-url", controller.url),
        fleet_gateway(controller) as gateway,
        gateway.http() as http,
    ):
        streaming, waiting = (RawConnection(gateway.url).post(CHAT, body) for body in (STREAM, CONVERSATION))
        assert streaming.read_head()[0] == 200
        labels = {"model_name": MODEL, "endpoint": CHAT}
        until(lambda: scrape(http).total("chatfleet:requests_in_flight", **labels) == 2, "two in flight")
        streaming.close()
        waiting.close()
        until(lambda: scrape(http).total("chatfleet:requests_in_flight") == 0, "their end")
        scraped = scrape(http)
    assert requests(scraped, CHAT, 499) == 2, "one of them in the middle of its answer"
    assert scraped.total("chatfleet:streams_broken_total") == 0


def test_a_gateway_counts_the_streams_that_a_workers_end_breaks(controller: ControllerProcess) -> None:
    with (
        WorkerProcess(*AN_HOUR, "--controller-url", controller.url) as worker,
        fleet_gateway(controller, *ONE_TRY) as gateway,
        gateway.http() as http,
    ):
        with http.stream("POST", CHAT, json=STREAM) as response:
            lines = response.iter_lines()
            next(lines)
            worker.stop(signal.SIGKILL)
            assert "error" in "".join(lines)
        scraped = scrape(http)
    assert scraped.value("chatfleet:streams_broken_total", model_name=MODEL) == 1
    assert requests(scraped, CHAT, 200) == 1


@pytest.mark.long
def test_a_gateway_counts_the_requests_that_it_sent_to_another_worker(controller: ControllerProcess) -> None:
    def one_more() -> WorkerProcess:
        return WorkerProcess("--engine", "simulated", "--controller-url", controller.url)

    with one_more(), one_more() as other, fleet_gateway(controller) as gateway, gateway.http() as http:
        until(lambda: scrape(http).value("chatfleet:workers", model_name=MODEL) == 2, "both workers in its view")
        other.stop(signal.SIGKILL)

        def retried() -> float:
            assert http.post(COMPLETIONS, json=COMPLETION).status_code == 200
            return scrape(http).value("chatfleet:retries_total", model_name=MODEL)

        until(retried, "a request for the worker that is gone")


def test_a_gateways_metrics_are_for_those_with_a_key(controller: ControllerProcess) -> None:
    env = {"CHATFLEET_API_KEYS": "sk-for-tests"}
    with (
        GatewayProcess(controllers=[controller], api_key="sk-for-tests", env=env) as gateway,
        gateway.http() as with_key,
        httpx.Client(base_url=gateway.url) as without_key,
    ):
        failed(without_key.get("/metrics"), 401)
        scrape(with_key)
        assert with_key.head("/metrics").status_code == 200


def on_new_connections(process: CommandProcess, count: int) -> None:
    """Requests that find their way to any of the processes on the port."""

    def one(_: int) -> int:
        with process.http() as http:
            return http.post(COMPLETIONS, json=COMPLETION).status_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(count))) == [200] * count


def counted(process: CommandProcess) -> float:
    """By whichever process answers."""
    with process.http() as http:
        return requests(scrape(http), COMPLETIONS, 200)


def processes_named(process: CommandProcess) -> set[str]:
    with process.http() as http:
        return scrape(http).label_values("process")


@pytest.mark.long
def test_any_process_of_a_gateway_tells_of_all(
    controller: ControllerProcess, fleet_worker: WorkerProcess, tmp_path: Path
) -> None:
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with GatewayProcess("--processes", "3", controllers=[controller], models=[MODEL], env=env) as gateway:
        three = {"gateway", "gateway#2", "gateway#3"}
        until(lambda: processes_named(gateway) == three, "all three processes")
        until(lambda: [gateway.served() for _ in range(9)] == [{MODEL}] * 9, "a model at each of them")
        (folder,) = (tmp_path / "chatfleet").iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        on_new_connections(gateway, 40)
        until(lambda: counted(gateway) == 40, "the sum of all three")
        seen = [counted(gateway) for _ in range(20)]
        assert seen == [40] * 20, "whichever is asked"

        victim = next(child for child in psutil.Process(gateway.pid).children() if child.is_running())
        victim.kill()
        until(lambda: len(processes_named(gateway)) == 2, "one that is gone")
        assert counted(gateway) == 40, "the dead count"
        until(lambda: processes_named(gateway) == three, "its successor")
        assert [counted(gateway) for _ in range(20)] == [40] * 20, "who goes on from there"
        with gateway.http() as http:
            assert scrape(http).value("chatfleet:workers", model_name=MODEL) == 1
    assert not list((tmp_path / "chatfleet").iterdir()), "the folder is gone with them"


@pytest.mark.long
def test_the_processes_of_serve_tell_of_all(tmp_path: Path) -> None:
    with ServeProcess("--engine", "simulated", "--processes", "2", folder=tmp_path) as serve:
        until(lambda: processes_named(serve) == {"gateway", "gateway#2"}, "both processes")
        on_new_connections(serve, 20)
        until(lambda: counted(serve) == 20, "the sum of both")
    assert not list((tmp_path / "chatfleet").iterdir())
