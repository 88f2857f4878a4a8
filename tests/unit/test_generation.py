"""Running the choices of a request."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from chatfleet.chat.tokenizer import ByteTokenizer
from chatfleet.core.errors import EngineError, QueueFull
from chatfleet.engines.base import SamplingParams
from chatfleet.worker.admission import Admission
from chatfleet.worker.generation import SHARED_PREFIX_TOKENS, ChoiceDelta, Generation, Job, interleave
from chatfleet.worker.metrics import CHAT, WorkerMetrics
from support.fakes import FakeEngine, text_delta

GREEDY = SamplingParams(max_tokens=8, temperature=0.0)
ANSWER = [text_delta("he"), text_delta("llo", finish_reason="stop")]


def generation(
    engine: FakeEngine, jobs: list[Job], *, admission: Admission | None = None, stops: tuple[str, ...] = ()
) -> Generation:
    admission = admission or Admission(max_concurrency=8, max_queue=0)
    return Generation(
        jobs,
        engine=engine,
        admission=admission,
        tokenizer=ByteTokenizer(),
        stops=stops,
        meter=WorkerMetrics("m", admission, engine.stats).begin(CHAT),
    )


def jobs(count: int, prompt_tokens: int = 3) -> list[Job]:
    return [Job(index, 0, [1] * prompt_tokens, GREEDY) for index in range(count)]


async def collect(running: Generation) -> list[ChoiceDelta]:
    deltas = [delta async for delta in running]
    await running.aclose()
    return deltas


async def test_every_choice_is_told_apart_and_counted() -> None:
    running = generation(FakeEngine(ANSWER), jobs(3))
    deltas = await collect(running)
    texts = {index: "".join(d.text for d in deltas if d.index == index) for index in range(3)}
    assert texts == {0: "hello", 1: "hello", 2: "hello"}
    assert (running.prompt_tokens, running.completion_tokens) == (3, 15)
    assert [d.index for d in deltas] != sorted(d.index for d in deltas), "choices come one after another"


async def test_a_stop_string_ends_the_engines_stream() -> None:
    engine = FakeEngine([text_delta("hel"), text_delta("lo"), text_delta(" and more")])
    deltas = await collect(generation(engine, jobs(1), stops=("lo",)))
    assert "".join(d.text for d in deltas) == "hel"
    assert deltas[-1].finish_reason == "stop"
    assert engine.streams[0].closed


async def test_closing_early_closes_every_stream_and_frees_every_slot() -> None:
    engine = FakeEngine(ANSWER)
    admission = Admission(max_concurrency=2, max_queue=2)
    running = generation(engine, jobs(4), admission=admission)
    await anext(aiter(running))
    assert admission.running == 2
    await running.aclose()
    await running.aclose()
    assert all(stream.closed for stream in engine.streams)
    assert (admission.running, admission.waiting) == (0, 0)


async def test_a_generation_that_is_never_read_holds_no_permit_after_closing() -> None:
    admission = Admission(max_concurrency=1, max_queue=1)
    await generation(FakeEngine(ANSWER), jobs(2), admission=admission).aclose()
    assert (admission.running, admission.waiting) == (0, 0)


async def test_a_full_queue_is_refused_before_anything_starts() -> None:
    engine = FakeEngine(ANSWER)
    admission = Admission(max_concurrency=2, max_queue=0)
    admission.reserve(1)
    with pytest.raises(QueueFull):
        generation(engine, jobs(2), admission=admission)
    assert not engine.requests


async def test_one_failing_choice_ends_the_request_and_its_siblings() -> None:
    engine = FakeEngine([text_delta("he"), EngineError("broken")])
    running = generation(engine, jobs(3))
    with pytest.raises(EngineError, match="broken"):
        await collect(running)
    await running.aclose()
    assert all(stream.closed for stream in engine.streams)


async def test_choices_over_a_long_prompt_wait_for_the_first_ones_prefill() -> None:
    gate = asyncio.Event()
    engine = FakeEngine(ANSWER, gate)
    running = generation(engine, jobs(3, SHARED_PREFIX_TOKENS))
    collecting = asyncio.create_task(collect(running))
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(engine.requests) == 1
    gate.set()
    await collecting
    assert len(engine.requests) == 3


async def test_interleave_closes_what_it_was_reading_when_it_is_closed() -> None:
    closed: list[int] = []

    async def numbers(start: int) -> AsyncGenerator[int, None]:
        try:
            for number in range(start, start + 100):
                yield number
                await asyncio.sleep(0)
        finally:
            closed.append(start)

    merged = interleave([numbers(0), numbers(1000)])
    seen = [await anext(merged) for _ in range(6)]
    await merged.aclose()
    assert sorted(closed) == [0, 1000]
    assert any(n < 1000 for n in seen) and any(n >= 1000 for n in seen)
