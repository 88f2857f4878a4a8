"""Many requests at once, at the engine's own precision: each ends as it should, and nothing of them is left."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio

from chatfleet.engines.base import SamplingParams
from conformance.subject import Answer, Subject, running
from conformance.targets import Loadable

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="module")]

MAX_CONCURRENCY = 32
POOL_TOKENS = 3000
"""Of the KV cache: little enough to be full at times, and touched as a whole soon."""

GROWTH_BYTES = 4 * 10**6
"""What a process may grow by over a thousand requests: a page of a KV cache each would be 49 MB."""

CHANCES: dict[str, Any] = {
    "temperature": lambda rng: rng.choice([0.0, 0.7, 1.0, 1.7]),
    "top_p": lambda rng: rng.uniform(0.05, 1.0),
    "top_k": lambda rng: rng.choice([1, 2, 40, 5000]),
    "min_p": lambda rng: rng.uniform(0.0, 0.5),
    "presence_penalty": lambda rng: rng.uniform(-2.0, 2.0),
    "frequency_penalty": lambda rng: rng.uniform(-2.0, 2.0),
    "repetition_penalty": lambda rng: rng.uniform(0.6, 2.0),
    "seed": lambda rng: rng.randrange(-(2**63), 2**63),
    "min_tokens": lambda rng: rng.randrange(60),
    "logit_bias": lambda rng: {rng.randrange(256): rng.uniform(-100, 100) for _ in range(rng.randrange(1, 9))},
    "bad_words_token_ids": lambda rng: tuple(
        tuple(rng.randrange(256) for _ in range(rng.randrange(1, 4))) for _ in range(rng.randrange(1, 9))
    ),
    "logprobs": lambda rng: 0,
    "prompt_logprobs": lambda rng: True,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(loadable: Loadable) -> AsyncIterator[Subject]:
    kv_cache_gb = POOL_TOKENS * loadable.target.kv_token_bytes / 1e9
    async with running(
        loadable, deterministic=False, max_concurrency=MAX_CONCURRENCY, kv_cache_gb=kv_cache_gb
    ) as subject:
        yield subject


def chance_settings(subject: Subject, rng: random.Random) -> dict[str, Any]:
    """Some of what the engine honours, at random."""
    names = sorted(subject.capabilities.parameters & set(CHANCES))
    settings = {name: CHANCES[name](rng) for name in names if rng.random() < 0.25}
    if "logprobs" in settings and subject.capabilities.max_top_logprobs:
        settings["logprobs"] = rng.randrange(subject.capabilities.max_top_logprobs + 1)
    stops = rng.choice([(), subject.end, (*subject.end, *rng.sample(range(256), 3))])
    return settings | {"max_tokens": rng.randrange(1, 64), "stop_token_ids": tuple(sorted(set(stops)))}


async def begin(subject: Subject, prompt: list[int], settings: dict[str, Any], deltas: int) -> None:
    """Take some deltas of a request, or what there is of it, and go."""
    answer = Answer(SamplingParams(**{"temperature": 0.0} | settings))
    stream = subject.engine.generate(prompt, answer.sampling)
    try:
        for _ in range(deltas):
            answer.take(await anext(stream))
    except StopAsyncIteration:
        pass
    finally:
        await stream.aclose()


async def test_five_hundred_mixed_requests_at_once(subject: Subject) -> None:
    rng = random.Random(11)
    cancelled, whole = [], []
    for number in range(500):
        prompt = subject.tokens(rng.choice([1, 5, 20, 60, 200]), seed=rng.randrange(40))  # some are the same
        settings = chance_settings(subject, rng)
        if number % 5 == 4:
            cancelled.append(begin(subject, prompt, settings, deltas=rng.choice([0, 1, 5])))
        else:
            whole.append(subject.generate(prompt, **settings))
    answers, _ = await asyncio.gather(asyncio.gather(*whole), asyncio.gather(*cancelled))
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    await subject.settled()
    assert len((await subject.generate(subject.tokens(5), max_tokens=9)).token_ids) == 9


async def test_a_burst_of_cancelled_requests_leaves_no_kv_cache_in_use(subject: Subject) -> None:
    rng = random.Random(3)
    requests = [(subject.tokens(rng.randrange(1, 100), seed), rng.choice([0, 0, 1, 2, 4])) for seed in range(300)]
    await asyncio.gather(*(begin(subject, prompt, {"max_tokens": 400}, deltas) for prompt, deltas in requests))
    await subject.settled()
    answers = await subject.gather(*((subject.tokens(30, number), {}) for number in range(MAX_CONCURRENCY)))
    assert [len(answer.token_ids) for answer in answers] == [32] * MAX_CONCURRENCY


async def test_a_thousand_cancelled_requests_leave_memory_flat(subject: Subject) -> None:
    async def cancel_many(seeds: range) -> None:
        """One after the other and of one length: libraries keep a kernel for every new shape, up to hundreds of MB."""
        for seed in seeds:
            await begin(subject, subject.tokens(48, seed), {"max_tokens": 900}, deltas=seed % 3)
        await subject.settled()

    await cancel_many(range(300))
    before, generated = await resident_bytes(subject), subject.engine.stats().generated_tokens
    await cancel_many(range(300, 1300))
    grown = await resident_bytes(subject) - before
    assert subject.engine.stats().generated_tokens - generated < 1000 * 900 / 2, "it went on with what was cancelled"
    assert grown < GROWTH_BYTES, f"{grown / 1e6:.0f} MB"
    assert len((await subject.generate(subject.tokens(48))).token_ids) == 32


async def resident_bytes(subject: Subject) -> int:
    """Of the engine's process."""
    return await asyncio.to_thread(lambda: psutil.Process(subject.engine.pid).memory_info().rss)
