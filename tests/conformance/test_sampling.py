"""What a request's settings do, for every engine: stopping, log probabilities, and each field that is honoured."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from chatfleet.core.errors import InvalidRequest
from chatfleet.engines.base import SamplingParams, TokenLogprobs
from conformance.subject import Subject

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = "What is ChatFleet?"
OPEN_QUESTION = "Tell me a story."

SETTINGS: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.2,
    "seed": 1,
    "min_tokens": 3,
    "stop_token_ids": (0,),
    "logit_bias": {5: 1.0},
    "bad_words_token_ids": ((5,), (6, 7)),
    "logprobs": 0,
    "prompt_logprobs": True,
}
"""Each setting of its own, at a value that is not the default."""


def different(token_ids: Sequence[int]) -> int:
    return len(set(token_ids))


def first_said(token_ids: Sequence[int], start: int) -> int:
    """The place, from `start` on, of a token that was not said before."""
    return next(i for i, token_id in enumerate(token_ids) if i >= start and token_id not in token_ids[:i])


# --- every setting ---


SETTINGS_HERE = [
    field.name
    for field in msgspec.structs.fields(SamplingParams)
    if not field.required and field.name != "grammar"  # test_structure.py has that
]


@pytest.mark.parametrize("name", SETTINGS_HERE)
async def test_a_setting_is_honoured_or_refused_by_name(subject: Subject, name: str) -> None:
    settings = {name: SETTINGS[name]}
    if await subject.honours(name, **settings):
        assert (await subject.generate(subject.prompt(QUESTION), max_tokens=6, **settings)).token_ids


# --- where an answer ends ---


async def test_it_ends_by_itself_with_the_end_token(subject: Subject) -> None:
    answer = await subject.generate(subject.prompt(QUESTION), max_tokens=600, stop_token_ids=subject.end)
    assert answer.finish_reason == "stop" and answer.token_ids[-1] in subject.end
    assert 10 < len(answer.token_ids) < 600


async def test_without_a_stop_token_it_goes_on_to_max_tokens(subject: Subject) -> None:
    prompt = subject.prompt(QUESTION)
    natural = await subject.generate(prompt, max_tokens=600, stop_token_ids=subject.end)
    count = len(natural.token_ids) + 30
    answer = await subject.generate(prompt, max_tokens=count)
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", count)
    assert answer.token_ids[: len(natural.token_ids) - 1] == natural.token_ids[:-1]


@pytest.mark.parametrize("count", [1, 2, 17])
async def test_max_tokens_is_the_number_of_tokens(subject: Subject, count: int) -> None:
    longer = await subject.generate(subject.prompt(QUESTION), max_tokens=32)
    answer = await subject.generate(subject.prompt(QUESTION), max_tokens=count)
    assert answer.token_ids == longer.token_ids[:count] and answer.finish_reason == "length"


async def test_any_stop_token_ends_it_and_counts(subject: Subject) -> None:
    whole = (await subject.generate(subject.prompt(QUESTION), max_tokens=40)).token_ids
    at = first_said(whole, 5)
    unused = next(token_id for token_id in subject.tokens(200) if token_id not in whole)
    stops = [(whole[at],), (unused, whole[at]), (whole[at], *subject.end)]
    settings = [{"stop_token_ids": stop_token_ids} for stop_token_ids in stops]
    for answer in await subject.variants(subject.prompt(QUESTION), *settings, max_tokens=40):
        assert answer.token_ids == whole[: at + 1] and answer.finish_reason == "stop"


async def test_a_stop_token_as_the_last_allowed_one_is_a_stop(subject: Subject) -> None:
    whole = (await subject.generate(subject.prompt(QUESTION), max_tokens=40)).token_ids
    at = first_said(whole, 5)
    answer = await subject.generate(subject.prompt(QUESTION), max_tokens=at + 1, stop_token_ids=(whole[at],))
    assert answer.finish_reason == "stop"


async def test_min_tokens_holds_stop_tokens_back(subject: Subject) -> None:
    if not await subject.honours("min_tokens", min_tokens=3):
        return
    prompt = subject.prompt(QUESTION)
    natural = await subject.generate(prompt, max_tokens=600, stop_token_ids=subject.end)
    length = len(natural.token_ids)
    settings: dict[str, Any] = {"max_tokens": length + 40, "stop_token_ids": subject.end}
    least = [1, length - 1, length, length + 20]
    answers = await subject.variants(prompt, *({"min_tokens": number} for number in least), **settings)
    assert answers[0].token_ids == answers[1].token_ids == natural.token_ids
    for number, answer in zip(least[2:], answers[2:], strict=True):
        assert len(answer.token_ids) > number and not set(answer.token_ids[:number]) & set(subject.end)
        assert answer.token_ids[: length - 1] == natural.token_ids[:-1]
    begun = answers[3].token_ids[: length // 2]
    rest = await subject.generate(prompt, begun, **settings, min_tokens=length + 20)
    assert begun + rest.token_ids == answers[3].token_ids


# --- log probabilities ---


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_log_probabilities_of_the_chosen_tokens(subject: Subject, temperature: float) -> None:
    if not await subject.honours("logprobs", logprobs=0):
        return
    settings = {"temperature": temperature, "seed": 5, "max_tokens": 40}
    plain = await subject.generate(subject.prompt(QUESTION), **settings)
    answer = await subject.generate(subject.prompt(QUESTION), logprobs=0, **settings)
    assert answer.token_ids == plain.token_ids, "asking for them changes the answer"
    assert all(entry.top == [] and -100 < entry.logprob <= 1e-6 for entry in answer.logprobs)


@pytest.mark.parametrize("count", [1, 5, 20])
async def test_the_likeliest_tokens_are_a_distribution_best_first(subject: Subject, count: int) -> None:
    if not await subject.gives_top_logprobs(count):
        return
    prompt = subject.prompt(QUESTION)
    chosen = await subject.generate(prompt, logprobs=0, max_tokens=40)
    answer = await subject.generate(prompt, logprobs=count, max_tokens=40)
    assert answer.token_ids == chosen.token_ids
    assert answer.chosen == pytest.approx(chosen.chosen, abs=1e-4)
    masses = []
    for entry in answer.logprobs:
        values = [value for _, value in entry.top]
        assert len(dict(entry.top)) == len(entry.top) == count
        assert values == sorted(values, reverse=True)
        assert entry.top[0] == (entry.token_id, entry.logprob), "greedy takes the likeliest"
        masses.append(math.fsum(map(math.exp, values)))
    assert max(masses) <= 1 + 1e-5
    if count == 20:
        assert sum(masses) / len(masses) > 0.9, "20 tokens hold nearly all of what these models expect"


async def test_more_of_the_likeliest_than_it_gives_are_refused(subject: Subject) -> None:
    assert not await subject.gives_top_logprobs(subject.capabilities.max_top_logprobs + 1)


async def test_a_sampled_token_keeps_its_own_log_probability_beside_the_likeliest(subject: Subject) -> None:
    if not await subject.gives_top_logprobs(2):
        return
    answer = await subject.generate(
        subject.prompt(QUESTION), logprobs=2, temperature=2.0, seed=3, max_tokens=60, top_k=50
    )
    others = [entry for entry in answer.logprobs if entry.token_id not in dict(entry.top)]
    assert others and all(len(entry.top) == 2 for entry in answer.logprobs)
    assert all(entry.logprob <= entry.top[-1][1] + 1e-6 for entry in others)


@pytest.mark.parametrize(
    "name", ["temperature", "top_k", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias"]
)
async def test_log_probabilities_are_of_the_model_alone(subject: Subject, name: str) -> None:
    """Before temperature, penalties and biases, as vLLM gives them: a token has what it would have in a plain answer
    that begins with the tokens before it."""
    prompt = subject.prompt(QUESTION)
    usual = (await subject.generate(prompt, max_tokens=16)).token_ids
    settings: dict[str, Any] = {
        "temperature": {"temperature": 1.5},
        "top_k": {"top_k": 2, "temperature": 1.5},
        "frequency_penalty": {"frequency_penalty": 2.0},
        "presence_penalty": {"presence_penalty": 2.0},
        "repetition_penalty": {"repetition_penalty": 1.9},
        "logit_bias": {"logit_bias": dict.fromkeys(usual[::2], -2.0)},
    }[name]
    if not await subject.honours(name, **settings):
        return
    logprobs = min(2, subject.capabilities.max_top_logprobs)
    answer = await subject.generate(prompt, logprobs=logprobs, max_tokens=16, **settings)
    begun = [answer.token_ids[:index] for index in range(16)]
    plain = await asyncio.gather(
        *(subject.generate(prompt, tokens, logprobs=logprobs, max_tokens=len(tokens) + 1) for tokens in begun)
    )
    same = 0
    for entry, [expected] in zip(answer.logprobs, [other.logprobs for other in plain], strict=True):
        assert entry.logprob <= expected.logprob + 1e-3, "none is likelier than the likeliest"
        assert [value for _, value in entry.top] == pytest.approx([value for _, value in expected.top], abs=1e-3)
        if entry.token_id == expected.token_id:
            assert entry.logprob == pytest.approx(expected.logprob, abs=1e-3)
            same += 1
    assert same >= 3


async def test_prompt_log_probabilities_are_those_of_the_same_tokens_generated(subject: Subject) -> None:
    if not await subject.honours("prompt_logprobs", prompt_logprobs=True):
        return
    prompt = subject.prompt(QUESTION)
    scored = {"prompt_logprobs": True, "logprobs": 0}
    first = await subject.generate(prompt, max_tokens=8, **scored)
    again = await subject.generate(prompt, max_tokens=8, **scored)
    longer = await subject.generate([*prompt, *first.token_ids], max_tokens=1, **scored)
    for answer, token_ids in ((first, prompt), (again, prompt), (longer, [*prompt, *first.token_ids])):
        assert answer.prompt_logprobs is not None and len(answer.prompt_logprobs) == len(token_ids)
        assert answer.prompt_logprobs[0] is None, "nothing is before the first token"
        entries = [entry for entry in answer.prompt_logprobs[1:] if entry is not None]
        assert [entry.token_id for entry in entries] == token_ids[1:]
        assert all(entry.top == [] and entry.logprob <= 1e-6 for entry in entries)
    assert again.prompt_logprobs is not None and longer.prompt_logprobs is not None

    def values(entries: Sequence[TokenLogprobs | None]) -> list[float]:
        return [entry.logprob for entry in entries if entry is not None]

    assert values(again.prompt_logprobs) == pytest.approx(values(first.prompt_logprobs or ()), abs=1e-3)
    assert values(longer.prompt_logprobs[: len(prompt)]) == pytest.approx(values(again.prompt_logprobs), abs=1e-3)
    if subject.loadable.model is not None:  # the simulated engine tells prompts and answers apart
        assert values(longer.prompt_logprobs[len(prompt) :]) == pytest.approx(first.chosen, abs=1e-2)


async def test_without_being_asked_for_there_are_no_log_probabilities(subject: Subject) -> None:
    answer = await subject.generate(subject.prompt(QUESTION))
    assert answer.logprobs == [] and answer.prompt_logprobs is None


# --- what is drawn ---


async def test_a_seed_repeats_and_another_one_does_not(subject: Subject) -> None:
    if not await subject.honours("seed", seed=1):
        return
    prompt = subject.prompt(QUESTION)
    seeds = [-(2**63), -1, 0, 1, 2, 2**63 - 1]
    answers = await subject.variants(prompt, *({"seed": seed} for seed in (*seeds, *seeds)), temperature=2.0)
    texts = [tuple(answer.token_ids) for answer in answers]
    assert texts[:6] == texts[6:] and len(set(texts)) == len(seeds)


async def test_at_temperature_zero_a_seed_changes_nothing(subject: Subject) -> None:
    plain, seeded = await subject.variants(subject.prompt(QUESTION), {}, {"seed": 7})
    assert plain.token_ids == seeded.token_ids


@pytest.mark.parametrize("only_one", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=lambda cut: next(iter(cut)))
async def test_truncation_to_one_token_leaves_no_choice(subject: Subject, only_one: dict[str, Any]) -> None:
    if not await subject.honours(next(iter(only_one)), **only_one):
        return
    prompt = subject.prompt(QUESTION)
    hot, cold, free = await subject.variants(
        prompt, {"temperature": 2.0, **only_one}, {"temperature": 0.5, **only_one}, {"temperature": 2.0}, seed=3
    )
    assert hot.token_ids == cold.token_ids != free.token_ids


async def test_top_k_bounds_what_is_drawn(subject: Subject) -> None:
    if not (await subject.honours("top_k", top_k=3) and await subject.gives_top_logprobs(3)):
        return
    prompt = subject.prompt(QUESTION)
    settings = [{"seed": seed} for seed in range(8)]
    answers = await subject.variants(prompt, *settings, temperature=2.0, top_k=3, logprobs=3)
    entries = [entry for answer in answers for entry in answer.logprobs]
    ranks = {[token_id for token_id, _ in entry.top].index(entry.token_id) for entry in entries}
    assert ranks == {0, 1, 2}


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
async def test_a_penalty_makes_for_more_different_tokens(subject: Subject, name: str) -> None:
    low, high = (0.7, 1.5) if name == "repetition_penalty" else (-2.0, 2.0)
    if not await subject.honours(name, **{name: high}):
        return
    penalties = [{}, {name: low}, {name: high}]
    settings = [{"seed": seed, **penalty} for penalty in penalties for seed in range(6)]
    answers = await subject.variants(subject.prompt(OPEN_QUESTION), *settings, temperature=1.5, max_tokens=60)
    counts = [different(answer.token_ids) for answer in answers]
    plain, repeating, varied = sum(counts[:6]), sum(counts[6:12]), sum(counts[12:])
    assert repeating <= plain <= varied and repeating < varied


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
async def test_penalties_count_what_another_engine_has_generated(subject: Subject, name: str) -> None:
    if not await subject.honours(name, **{name: 1.0}):
        return
    prompt = subject.prompt(QUESTION)
    whole = await subject.generate(prompt, **{name: 1.5, "max_tokens": 40})
    rest = await subject.generate(prompt, whole.token_ids[:25], **{name: 1.5, "max_tokens": 40})
    assert whole.token_ids[25:] == rest.token_ids


async def test_a_bias_forces_a_token_and_bans_one(subject: Subject) -> None:
    if not await subject.honours("logit_bias", logit_bias={5: 1.0}):
        return
    prompt = subject.prompt(QUESTION)
    plain = await subject.generate(prompt)
    forced_id = next(token_id for token_id in subject.tokens(50) if token_id not in plain.token_ids)
    forced = await subject.generate(prompt, logit_bias={forced_id: 100.0}, max_tokens=5)
    assert forced.token_ids == [forced_id] * 5
    at = first_said(plain.token_ids, 3)
    banned_id = plain.token_ids[at]
    banned, neighbour = await subject.variants(prompt, {"logit_bias": {banned_id: -100.0}}, {})
    assert banned_id not in banned.token_ids and banned.token_ids[:at] == plain.token_ids[:at]
    assert neighbour.token_ids == plain.token_ids
    for token_id in (-1, subject.capabilities.vocab_size):
        with pytest.raises(InvalidRequest):
            await subject.generate(prompt, logit_bias={token_id: 1.0})


async def test_bad_words_never_come(subject: Subject) -> None:
    if not await subject.honours("bad_words_token_ids", bad_words_token_ids=((5,),)):
        return
    prompt = subject.prompt(QUESTION)
    plain = (await subject.generate(prompt)).token_ids
    at = first_said(plain, 3)
    for word in ((plain[at],), (plain[at - 1], plain[at]), tuple(plain[at - 3 : at + 1])):
        begun = ([], plain[: at - 1], plain[:at])
        settings = {"bad_words_token_ids": (word, (0, 1, 2)), "max_tokens": 24}
        rests = await asyncio.gather(*(subject.generate(prompt, tokens, **settings) for tokens in begun))
        for tokens, rest in zip(begun, rests, strict=True):
            answer = tokens + rest.token_ids
            assert answer[:at] == plain[:at] and answer[at] != plain[at]
            spots = range(len(answer) - len(word) + 1)
            assert word not in [tuple(answer[spot : spot + len(word)]) for spot in spots]
