"""Clients that go away free their slot, their place in the queue and their KV, whatever they were doing.

Shown by what other clients get: with an hour between tokens, a slot that is not given back is never free again.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import psutil
import pytest

from support.processes import Endpoint, WorkerProcess
from support.wire import Json, RawConnection, failed, user

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
AN_HOUR = ("--engine", "simulated", "--sim-itl-ms", "3600000")

LONG: dict[str, tuple[str, Json]] = {
    "a chat stream": (CHAT, {"messages": user("hi"), "stream": True}),
    "a chat answer": (CHAT, {"messages": user("hi")}),
    "a completion stream": (COMPLETIONS, {"prompt": "hi", "stream": True}),
    "a completion answer": (COMPLETIONS, {"prompt": "hi"}),
}
SHORT: Json = {"prompt": "hi", "max_tokens": 1}


@pytest.fixture(scope="module")
def one_slot() -> Iterator[WorkerProcess]:
    """One request runs, one may wait, and what runs does not end."""
    with WorkerProcess(*AN_HOUR, "--max-concurrency", "1", "--max-queue", "1") as worker:
        yield worker


@pytest.fixture(scope="module")
def one_kv_pool() -> Iterator[WorkerProcess]:
    """Slots for many, KV for one whole context of 512 tokens: 64 KiB a token."""
    pool = ("--context-length", "512", "--kv-cache-gb", "0.034")
    with WorkerProcess(*AN_HOUR, *pool) as worker:
        yield worker


def send(worker: WorkerProcess, name: str) -> RawConnection:
    path, body = LONG[name]
    return RawConnection(worker.url).post(path, body)


def until_busy(http: httpx.Client) -> None:
    """Wait until the slot is taken: a short request gets no answer then, and leaves."""
    try:
        while http.post(COMPLETIONS, json=SHORT, timeout=1).status_code == 200:
            pass
    except httpx.ReadTimeout:
        pass


def until_answered(http: httpx.Client) -> None:
    """Wait for a place in the queue, then for the answer; after a leak neither comes."""
    while (response := http.post(COMPLETIONS, json=SHORT, timeout=30)).status_code == 429:
        pass
    assert response.status_code == 200


def queued(worker: WorkerProcess, http: httpx.Client, name: str) -> RawConnection:
    """A request that waits in the queue, behind one that runs: others are turned away because of it."""
    while True:
        waiting = send(worker, name)
        try:
            response = http.post(COMPLETIONS, json=SHORT, timeout=1)
        except httpx.ReadTimeout:  # it was faster, and took the place
            waiting.close()
            continue
        assert failed(response, 429, code="queue_full")["type"] == "rate_limit_error"
        return waiting


@pytest.mark.parametrize("end", [RawConnection.close, RawConnection.reset])
@pytest.mark.parametrize("name", LONG)
def test_a_running_request_frees_its_slot(
    one_slot: WorkerProcess, name: str, end: Callable[[RawConnection], None]
) -> None:
    with one_slot.http() as http:
        running = send(one_slot, name)
        until_busy(http)
        end(running)
        until_answered(http)


@pytest.mark.parametrize("name", ["a chat stream", "a completion stream"])
def test_a_stream_that_has_begun_frees_its_slot(one_slot: WorkerProcess, name: str) -> None:
    with one_slot.http() as http, send(one_slot, name) as running:
        running.read_head()
        next(running.read_chunks())
        running.close()
        until_answered(http)


@pytest.mark.parametrize("name", LONG)
def test_a_queued_request_frees_its_place(one_slot: WorkerProcess, name: str) -> None:
    """Were it still there, it would take the slot that the running one leaves, and keep it."""
    with one_slot.http() as http, send(one_slot, "a chat stream") as running:
        running.read_head()
        waiting = queued(one_slot, http, name)
        waiting.close()
        running.close()
        until_answered(http)


def test_a_queued_request_is_answered_when_its_turn_comes(one_slot: WorkerProcess) -> None:
    with one_slot.http() as http:
        until_answered(http)
        with send(one_slot, "a chat stream") as running, RawConnection(one_slot.url) as waiting:
            running.read_head()
            waiting.post(COMPLETIONS, SHORT)
            running.close()
            assert waiting.read_response().status == 200


def test_every_choice_of_a_request_is_freed(one_kv_pool: WorkerProcess) -> None:
    body: Json = {"prompt": ["a", "b", "c"], "n": 4, "stream": True}
    with one_kv_pool.http() as http:
        for _ in range(3):
            with RawConnection(one_kv_pool.url).post(COMPLETIONS, body) as connection:
                connection.read_head()
        assert http.post(COMPLETIONS, json={**SHORT, "n": 64}).status_code == 200


@pytest.mark.parametrize("name", ["a chat stream", "a completion answer"])
def test_a_request_frees_its_kv(one_kv_pool: WorkerProcess, name: str) -> None:
    path, body = LONG[name]
    # Prompt and max_tokens fill the pool, so the next one's first token needs all that this one holds.
    whole: Json = {"prompt": "x" * 12, "max_tokens": 500, "stream": True}
    with one_kv_pool.http() as http:
        for _ in range(5):
            running = RawConnection(one_kv_pool.url).post(path, {**body, "max_tokens": 480})
            if body.get("stream"):
                running.read_head()
            running.close()
            with RawConnection(one_kv_pool.url).post(COMPLETIONS, whole) as connection:
                assert connection.read_head()[0] == 200
        until_answered(http)


@pytest.mark.long
def test_a_pipelining_client_frees_all_that_it_asked_for(one_slot: WorkerProcess) -> None:
    with one_slot.http() as http:
        for name in LONG:
            path, body = LONG[name]
            running = RawConnection(one_slot.url).post(path, body)
            for _ in range(3):
                running.post(path, body)
            until_busy(http)
            running.close()
            until_answered(http)


def test_a_client_that_stops_reading_frees_its_slot_when_it_leaves() -> None:
    with (
        WorkerProcess("--engine", "simulated", "--context-length", "200000", "--max-concurrency", "1") as worker,
        worker.http() as http,
    ):
        endless: Json = {"prompt": "hi", "stream": True, "ignore_eos": True, "max_tokens": 190_000, "logprobs": 5}
        for end in (RawConnection.close, RawConnection.reset):
            running = RawConnection(worker.url).post(COMPLETIONS, endless)
            running.read_head()
            until_busy(http)
            end(running)
            until_answered(http)


def test_embeddings_that_nobody_waits_for_are_dropped(one_kv_pool: WorkerProcess) -> None:
    with one_kv_pool.http() as http:
        for _ in range(10):
            RawConnection(one_kv_pool.url).post(EMBEDDINGS, {"input": ["x" * 500] * 2048}).close()
        assert http.post(EMBEDDINGS, json={"input": "hi"}).status_code == 200


def test_past_the_queue_a_request_is_a_429_at_once(one_slot: WorkerProcess) -> None:
    with one_slot.http() as http, send(one_slot, "a chat stream") as running:
        running.read_head()
        with queued(one_slot, http, "a chat answer"):
            for path, body in LONG.values():
                failed(http.post(path, json=body), 429, code="queue_full")
            failed(http.post(EMBEDDINGS, json={"input": "hi"}), 429, code="queue_full")
            assert http.get("/ready").status_code == 200
    with one_slot.http() as http:
        until_answered(http)


def test_a_request_of_more_choices_than_ever_fit_is_refused_for_good(one_slot: WorkerProcess) -> None:
    with one_slot.http() as http:
        until_answered(http)
        failed(http.post(COMPLETIONS, json={**SHORT, "n": 3}), 400, param="n")
        assert http.post(COMPLETIONS, json={**SHORT, "n": 2}).status_code == 200
        until_answered(http)


def memory_mb(worker: WorkerProcess) -> float:
    """Resident memory of the worker and its engine process."""
    process = psutil.Process(worker.pid)
    return float(sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))) / 2**20


@pytest.mark.long
def test_a_thousand_cancelled_requests_leave_memory_flat(paced_endpoint: Endpoint) -> None:
    def cancel(count: int) -> None:
        for start in range(0, count, 50):
            with ExitStack() as stack:
                connections = [
                    stack.enter_context(send(paced_endpoint, list(LONG)[number % len(LONG)]))
                    for number in range(start, start + 50)
                ]
                for number, connection in enumerate(connections):
                    if number % len(LONG) in (0, 2):
                        connection.read_head()

    with paced_endpoint.http() as http:
        cancel(500)
        until_answered(http)
        before = memory_mb(paced_endpoint)
        cancel(1000)
        until_answered(http)
        growth = memory_mb(paced_endpoint) - before
    assert growth < 20, f"{growth:.0f} MB more"
    assert "Traceback" not in paced_endpoint.output
