"""Running the choices of a request."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from chatfleet.chat.text import TextRules, TokenText
from chatfleet.chat.tokenizer import ByteTokenizer
from chatfleet.core.errors import EngineError, QueueFull
from chatfleet.engines.base import SamplingParams, TokenLogprobs
from chatfleet.protocol.resume import PendingLogprob, ResumedChoice
from chatfleet.worker.admission import Admission
from chatfleet.worker.generation import SHARED_PREFIX_TOKENS, ChoiceDelta, Generation, Job, interleave
from chatfleet.worker.metrics import CHAT, WorkerMetrics
from chatfleet.worker.recovery import RecoveryLines, Replay, replay
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
        rules=TextRules(stops),
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


def replayed(
    said: str | bytes, *, stops: tuple[str, ...] = (), sampling: SamplingParams = GREEDY, **fields: object
) -> Replay:
    choice = ResumedChoice(index=0, token_ids=list(said if isinstance(said, bytes) else said.encode()), **fields)  # type: ignore[arg-type]
    return replay(choice, ByteTokenizer(), TextRules(stops), sampling)


async def test_a_choice_goes_on_behind_what_was_delivered_of_it_and_counts_that() -> None:
    engine = FakeEngine(ANSWER)
    running = generation(engine, [Job(0, 0, [1], GREEDY, replayed("ab"))])
    deltas = await collect(running)
    assert "".join(delta.text for delta in deltas) == "hello"
    assert engine.outputs == [list(b"ab")]
    assert running.completion_tokens == 2 + 5


async def test_choices_that_are_over_need_neither_permit_nor_engine() -> None:
    engine = FakeEngine(ANSWER)
    admission = Admission(max_concurrency=1, max_queue=0)
    admission.reserve(1)
    done, full = replayed("ab", finish_reason="stop"), replayed("abcdefgh")
    running = generation(engine, [Job(0, 0, [1], GREEDY, done), Job(1, 0, [1], GREEDY, full)], admission=admission)
    assert [(delta.index, delta.text, delta.finish_reason) for delta in await collect(running)] == [(1, "", "length")]
    assert not engine.requests
    assert (running.prompt_tokens, running.completion_tokens) == (1, 10)


async def test_among_choices_that_are_over_the_first_that_runs_fills_the_prefix_cache() -> None:
    engine = FakeEngine([text_delta("x", cached_tokens=7), text_delta("y", finish_reason="stop")])
    prompt = [1] * SHARED_PREFIX_TOKENS
    waiting = [Job(index, 0, prompt, GREEDY, replayed("abcdefgh") if index < 2 else None) for index in range(4)]
    running = generation(engine, waiting)
    await collect(running)
    assert len(engine.requests) == 2
    assert running.cached_tokens == 7


@pytest.mark.parametrize(
    ("said", "stops", "sampling", "finish_reason"),
    [
        ("abc", (), GREEDY, None),
        ("abcdefgh", (), GREEDY, "length"),
        ("abc", ("bc",), GREEDY, "stop"),
        ("abcdefgh", ("gh",), GREEDY, "stop"),
        ("abc", (), SamplingParams(max_tokens=8, stop_token_ids=(ord("c"),)), "stop"),
        ("abc", (), SamplingParams(max_tokens=8, stop_token_ids=(ord("b"),)), None),
        ("abc", (), SamplingParams(max_tokens=8, stop_token_ids=(ord("c"),), min_tokens=3), None),
        ("", (), SamplingParams(max_tokens=8, stop_token_ids=(0,)), None),
        (b"ab\xf0", ("bx", "�"), SamplingParams(max_tokens=3), "stop"),
        (b"ab\xf0", ("bx", "�"), SamplingParams(max_tokens=4), None),
    ],
)
def test_a_choice_is_over_when_its_last_token_ended_it(
    said: str | bytes, stops: tuple[str, ...], sampling: SamplingParams, finish_reason: str | None
) -> None:
    assert replayed(said, stops=stops, sampling=sampling).finish_reason == finish_reason


async def test_what_was_held_back_with_its_log_probability_comes_out_elsewhere() -> None:
    sampling = SamplingParams(max_tokens=8, logprobs=0)
    held = replayed("abE", stops=("END",), sampling=sampling, pending=[PendingLogprob(ord("E"), -0.5)])
    script = [text_delta("x", logprobs=[TokenLogprobs(ord("x"), -1.5)], finish_reason="length")]
    (delta,) = await collect(generation(FakeEngine(script), [Job(0, 0, [1], sampling, held)], stops=("END",)))
    assert delta.text == "Ex"
    assert [(token.text, token.offset, token.logprob) for token in delta.tokens] == [("E", 2, -0.5), ("x", 3, -1.5)]


async def test_tokens_behind_a_stop_string_are_not_among_those_that_count() -> None:
    (delta,) = await collect(generation(FakeEngine([text_delta("a, b, c")]), jobs(1), stops=(", ",)))
    assert bytes(delta.token_ids) == b"a, "


def test_lines_say_what_was_consumed_since_the_last_event_of_a_choice() -> None:
    lines = RecoveryLines("chatcmpl-1", 5)
    assert lines.of_choice(0, None) == b":r chatcmpl-1 5\n:r 0\n"
    lines.consumed(0, [17, 29], [])
    lines.consumed(1, [4], [])
    lines.consumed(0, [3], [TokenText(3, b"c", 2, -0.5, [(3, -0.5), (4, -1.25)])])
    assert lines.of_choice(0, None) == b":r 0,17,29,3 [[3,-0.5,[[3,-0.5],[4,-1.25]]]]\n"
    assert lines.of_choice(1, "stop") == b":r 1,4 stop\n"
    lines.consumed(0, [151645], [])
    assert lines.of_choice(0, None) == b":r 0,151645\n"
    assert lines.of_choice(0, "length") == b":r 0 length\n"
    assert lines.of_usage() == b":r usage\n"
    assert lines.of_end() == b""
    assert RecoveryLines("cmpl-1", 6).of_end() == b":r cmpl-1 6\n"
