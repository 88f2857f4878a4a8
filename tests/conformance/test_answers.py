"""Answers that must not depend on the company they are generated in, and requests at the edges, for every engine."""

import asyncio
import math
import struct
from typing import Any

import pytest

from chatfleet.core.errors import InvalidRequest
from conformance.subject import Subject
from conformance.targets import CONTEXT_LENGTH

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTIONS = ["Tell me a story.", "Count to 20.", "What is the capital of France?", "Say hello to grüße 🚢 你好."]


def close(values: list[float]) -> Any:
    return pytest.approx(values, abs=1e-4)


# --- determinism ---


@pytest.mark.long
async def test_neighbours_do_not_change_an_answer(subject: Subject) -> None:
    settings = {"max_tokens": 40, "logprobs": 0}
    prompts = [subject.prompt(question) for question in QUESTIONS]
    alone = [await subject.generate(prompt, **settings) for prompt in prompts]
    neighbours = [(subject.tokens(9 * number + 3, number), {"max_tokens": 20 + number}) for number in range(16)]
    together = await subject.gather(*((prompt, settings) for prompt in prompts), *neighbours)
    for one, other in zip(alone, together, strict=False):
        assert one.token_ids == other.token_ids
        assert one.chosen == close(other.chosen)


async def test_the_prefix_cache_does_not_change_an_answer(subject: Subject) -> None:
    prompt = subject.tokens(200, seed=77)
    first = await subject.generate(prompt, logprobs=0)
    second = await subject.generate(prompt, logprobs=0)
    other_end = await subject.generate(prompt[:-1] + subject.tokens(1, seed=5), logprobs=0)
    third = await subject.generate(prompt, logprobs=0)
    for answer in (first, second, other_end, third):
        assert answer.cached_tokens is None or 0 <= answer.cached_tokens < len(prompt)
    assert first.token_ids == second.token_ids == third.token_ids
    assert second.chosen == close(first.chosen) and third.chosen == close(first.chosen)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seed": 7, "temperature": 1.5},
        {"seed": 7, "temperature": 1.5, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
        {"frequency_penalty": 1.0, "presence_penalty": 0.5},
        {"repetition_penalty": 1.3},
        {"logit_bias": {40: 5.0, 41: -5.0}},
    ],
    ids=lambda settings: "+".join(settings) or "greedy",
)
@pytest.mark.parametrize("neighbours", [0, 16])
@pytest.mark.long
async def test_an_answer_that_another_engine_has_begun_goes_on_as_it_would_have_there(
    subject: Subject, settings: dict[str, Any], neighbours: int
) -> None:
    for name in settings:
        if not await subject.honours(name, **{name: settings[name]}):
            return
    prompt = subject.prompt(QUESTIONS[0])
    settings = {"max_tokens": 40, "logprobs": 0, **settings}
    whole = await subject.generate(prompt, **settings)
    company = [(subject.tokens(5 * number + 3, number), {"max_tokens": 30}) for number in range(neighbours)]
    cuts = (1, 17, 39)
    rests, _ = await asyncio.gather(
        asyncio.gather(*(subject.generate(prompt, whole.token_ids[:cut], **settings) for cut in cuts)),
        subject.gather(*company),
    )
    for cut, rest in zip(cuts, rests, strict=True):
        assert rest.token_ids == whole.token_ids[cut:]
        assert rest.chosen == close(whole.chosen[cut:])
        assert rest.finish_reason == whole.finish_reason


async def test_a_begun_answer_ends_at_its_stop_token(subject: Subject) -> None:
    whole = (await subject.generate(subject.prompt(QUESTIONS[0]), max_tokens=40)).token_ids
    at = next(index for index in range(15, 40) if whole[index] not in whole[:index])
    rest = await subject.generate(subject.prompt(QUESTIONS[0]), whole[:9], max_tokens=40, stop_token_ids=(whole[at],))
    assert rest.token_ids == whole[9 : at + 1] and rest.finish_reason == "stop"


# --- what is refused ---


@pytest.mark.parametrize("edge", ["empty", "outside", "negative", "too long", "whole answer", "answer outside"])
async def test_what_makes_no_sense_is_refused_and_harms_nobody(subject: Subject, edge: str) -> None:
    vocab_size, context_length = subject.capabilities.vocab_size, subject.capabilities.context_length
    prompt = subject.tokens(5)
    requests: dict[str, tuple[list[int], list[int], int]] = {
        "empty": ([], [], 8),
        "outside": ([*prompt, vocab_size], [], 8),
        "negative": ([-1, *prompt], [], 8),
        "too long": (subject.tokens(context_length + 1), [], 1),
        "whole answer": (prompt, prompt, 5),
        "answer outside": (prompt, [vocab_size], 8),
    }
    neighbour = asyncio.ensure_future(subject.generate(prompt, max_tokens=60))
    token_ids, begun, max_tokens = requests[edge]
    with pytest.raises(InvalidRequest):
        await subject.generate(token_ids, begun, max_tokens=max_tokens)
    assert len((await neighbour).token_ids) == 60


# --- long prompts and the end of the context ---


@pytest.mark.parametrize("left", [1, 90, pytest.param(CONTEXT_LENGTH - 1, marks=pytest.mark.long)])
async def test_the_context_can_be_used_to_its_last_token(subject: Subject, left: int) -> None:
    assert subject.capabilities.context_length == CONTEXT_LENGTH
    prompt = subject.tokens(CONTEXT_LENGTH - left, seed=left)
    answer = await subject.generate(prompt, max_tokens=left)
    assert answer.finish_reason == "length"
    with pytest.raises(InvalidRequest, match=str(CONTEXT_LENGTH)):
        await subject.generate(prompt, max_tokens=left + 1)
    with pytest.raises(InvalidRequest):
        await subject.generate(subject.tokens(CONTEXT_LENGTH), max_tokens=1)


async def test_long_prompts_are_read_beside_each_other(subject: Subject) -> None:
    length = subject.capabilities.context_length - 24
    prompts = [subject.tokens(length - 7 * number, seed=100 + number) for number in range(4)]
    alone = [await subject.generate(prompt, max_tokens=20) for prompt in prompts[:2]]
    short = (subject.prompt(QUESTIONS[2]), {"max_tokens": 60})
    together = await subject.gather(*((prompt, {"max_tokens": 20}) for prompt in prompts), short)
    assert [answer.token_ids for answer in together[:2]] == [answer.token_ids for answer in alone]
    assert [len(answer.token_ids) for answer in together] == [20] * 4 + [60]


# --- figures ---


async def test_the_figures_count_what_was_generated(subject: Subject) -> None:
    await subject.settled()
    before = subject.engine.stats()
    answers = await subject.gather(*((subject.tokens(8, number), {"max_tokens": 5 + number}) for number in range(10)))
    await subject.settled()
    after = subject.engine.stats()
    generated = sum(len(answer.token_ids) for answer in answers)
    assert after.generated_tokens - before.generated_tokens == generated
    assert after.steps > before.steps


# --- embeddings ---


async def test_embeddings_are_normalised_and_depend_on_the_input_alone(subject: Subject) -> None:
    if not await subject.embeds():
        return
    inputs = [subject.prompt(question) for question in QUESTIONS]
    (alone,) = await subject.engine.embed([inputs[0]])
    running = asyncio.ensure_future(subject.generate(inputs[1], max_tokens=100))
    together = await subject.engine.embed(inputs)
    assert len((await running).token_ids) == 100
    assert together[0] == alone and len(set(together)) == len(inputs)
    for embedding in together:
        vector = struct.unpack(f"<{subject.capabilities.embedding_dim}f", embedding)
        assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-4)
    for token_ids in ([], [subject.capabilities.vocab_size]):
        with pytest.raises(InvalidRequest):
            await subject.engine.embed([token_ids])
