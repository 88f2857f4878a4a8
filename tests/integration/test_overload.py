"""A worker that has more to do than it can hold: who is turned away is told when to come again."""

import asyncio
import time
from collections.abc import Iterator

import httpx
import pytest
from openai import AsyncOpenAI

from support.processes import THROUGH, Endpoint, endpoint
from support.wire import Json, failed, user

SLOTS, QUEUE, CLIENTS = 8, 8, 64
WORK_S = 1.25
STEP_MS = 25
CHAT = "/v1/chat/completions"


def request(seconds: float, **more: object) -> Json:
    tokens = round(1000 * seconds / STEP_MS)
    return {"model": "simulated", "messages": user("hi"), "max_tokens": tokens, "ignore_eos": True, **more}


@pytest.fixture(scope="module", params=THROUGH)
def worker(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """Itself, or through a gateway, which passes on what it says when there is no other."""
    limits = ("--max-concurrency", str(SLOTS), "--max-queue", str(QUEUE))
    with endpoint(request.param, "--engine", "simulated", "--sim-itl-ms", str(STEP_MS), *limits) as process:
        yield process


@pytest.mark.long
async def test_every_request_of_a_ten_second_overload_succeeds_with_a_client_as_it_comes(
    worker: Endpoint,
) -> None:
    """Eight slots have ten seconds of work before them, and two retries are all that the client makes."""
    turned_away = 0

    async def count(response: httpx.Response) -> None:
        nonlocal turned_away
        turned_away += response.status_code == 429

    sdk = httpx.AsyncClient(event_hooks={"response": [count]}, timeout=100)
    async with AsyncOpenAI(base_url=f"{worker.url}/v1", api_key="none", http_client=sdk) as client:

        async def ask(number: int) -> int:
            body = request(WORK_S, messages=user(f"Question {number}"))
            answer = await client.chat.completions.create(
                model="simulated",
                messages=body["messages"],
                max_tokens=body["max_tokens"],
                extra_body={"ignore_eos": True},
            )
            assert answer.usage is not None
            return answer.usage.completion_tokens

        await asyncio.gather(*map(ask, range(SLOTS + QUEUE)))  # so that it knows how fast it is
        begun = time.monotonic()
        tokens = await asyncio.gather(*map(ask, range(CLIENTS)))
        took_s = time.monotonic() - begun
    assert set(tokens) == {round(1000 * WORK_S / STEP_MS)}
    assert turned_away
    assert took_s < 60


@pytest.mark.long
async def test_the_refused_are_told_when_to_come_each_later_than_the_one_before(worker: Endpoint) -> None:
    many = SLOTS + QUEUE + 5
    async with httpx.AsyncClient(base_url=worker.url, timeout=100) as http:
        asking = [asyncio.create_task(http.post(CHAT, json=request(60))) for _ in range(many)]
        try:
            answers = asyncio.as_completed(asking)
            refused = [await next(answers) for _ in range(5)]
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
    for response in refused:
        error = failed(response, 429, code="queue_full")
        assert f"{SLOTS} running and {QUEUE} waiting" in error["message"] and "--max-queue" in error["message"]
        assert response.headers["x-should-retry"] == "true"
        assert int(response.headers["retry-after"]) == -(-int(response.headers["retry-after-ms"]) // 1000)
    times = [int(response.headers["retry-after-ms"]) for response in refused]
    assert len(set(times)) == 5 and all(100 <= each <= 60_000 for each in times), times
