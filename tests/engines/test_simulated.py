"""The simulated engine, stepped directly."""

import json
import math
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from chatfleet.chat.grammar import from_json_schema, remaining, to_lark
from chatfleet.engines import simulated, simulated_script
from chatfleet.engines.base import EngineConfig, GenerateRequest, RequestRefused, SamplingParams, TokenDelta
from chatfleet.engines.simulated import CACHE_BLOCK_TOKENS, END_OF_SEQUENCE, VOCAB_SIZE, SimulatedBackend
from support.schemas import random_schema

PROMPT = list(b"What is a lighthouse?")
EOS = (END_OF_SEQUENCE,)
TOKEN_BYTES = [*(bytes([byte]) for byte in range(256)), b"", b"", b""]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def backend(clock: Callable[[], float] = time.monotonic, **config: Any) -> SimulatedBackend:
    return SimulatedBackend(EngineConfig(engine="simulated", **config), clock=clock)


def add(
    engine: SimulatedBackend,
    request_id: int = 1,
    prompt: list[int] = PROMPT,
    output_token_ids: Sequence[int] = (),
    **sampling: Any,
) -> None:
    params = SamplingParams(**{"max_tokens": 50, **sampling})
    request = GenerateRequest(
        request_id=request_id, prompt_token_ids=prompt, sampling=params, output_token_ids=list(output_token_ids)
    )
    engine.add(request)


def drain(engine: SimulatedBackend) -> dict[int, list[TokenDelta]]:
    """Step until nothing is left, without pace."""
    deltas: dict[int, list[TokenDelta]] = {}
    while engine.next_step_s() is not None:
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    return deltas


def answer(prompt: list[int] = PROMPT, config: dict[str, Any] | None = None, **sampling: Any) -> list[TokenDelta]:
    engine = backend(**(config or {}))
    add(engine, 1, prompt, **sampling)
    return drain(engine)[1]


def tokens(deltas: list[TokenDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


def text(deltas: list[TokenDelta]) -> str:
    return bytes(token_id for token_id in tokens(deltas) if token_id < 256).decode()


# --- text ---


def test_the_text_is_words_in_sentences() -> None:
    words = text(answer(max_tokens=2000, stop_token_ids=EOS))
    assert words[0].isupper() and words.endswith(".")
    assert set(words.lower().replace(".", "").split()) <= set(simulated_script._WORDS)
    assert len(words.split()) >= simulated_script._MIN_WORDS


def test_max_tokens_is_the_number_of_tokens() -> None:
    assert [len(tokens(answer(max_tokens=count))) for count in (1, 2, 17)] == [1, 2, 17]
    [empty] = answer(max_tokens=0)
    assert (empty.token_ids, empty.finish_reason) == ([], "length")


@settings(max_examples=30, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40), min_size=1, max_size=8),
    concurrency=st.integers(1, 4),
)
def test_an_answer_depends_on_its_prompt_and_not_on_the_batch(prompts: list[list[int]], concurrency: int) -> None:
    engine = backend(max_concurrency=concurrency)
    for request_id, prompt in enumerate(prompts):
        add(engine, request_id, prompt, logprobs=1)
    together = drain(engine)
    for request_id, prompt in enumerate(prompts):
        assert tokens(together[request_id]) == tokens(answer(prompt, logprobs=1))


def test_other_prompts_have_other_answers() -> None:
    assert len({text(answer([index])) for index in range(VOCAB_SIZE)}) == VOCAB_SIZE


def test_a_shorter_answer_is_the_beginning_of_a_longer_one() -> None:
    assert tokens(answer(max_tokens=20)) == tokens(answer(max_tokens=40))[:20]


SETTINGS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"max_tokens": st.integers(2, 120), "stop_token_ids": st.sampled_from([(), EOS, (*EOS, ord("e"))])},
    optional={
        "seed": st.integers(0, 9),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0.1, 1),
        "top_k": st.integers(0, 5),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0.5, 2),
        "min_tokens": st.integers(0, 130),
        "logit_bias": st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.floats(-100, 100), max_size=4),
        "logprobs": st.integers(0, 3),
        "bad_words_token_ids": st.lists(
            st.lists(st.sampled_from(b"aeinorst "), min_size=1, max_size=3).map(tuple), max_size=3
        ).map(tuple),
    },
)


@settings(max_examples=60, deadline=None)
@given(sampling=SETTINGS, data=st.data())
def test_an_answer_that_another_engine_has_begun_goes_on_as_it_would_have_there(
    sampling: dict[str, Any], data: st.DataObject
) -> None:
    whole = answer(**sampling)
    cut = data.draw(st.integers(0, len(whole) - 1))
    engine = backend()
    add(engine, 1, output_token_ids=tokens(whole[:cut]), **sampling)
    rest = drain(engine)[1]
    assert tokens(rest) == tokens(whole[cut:])
    assert [delta.logprobs for delta in rest] == [delta.logprobs for delta in whole[cut:]]
    assert rest[-1].finish_reason == whole[-1].finish_reason
    assert engine.stats().generated_tokens == len(whole) - cut
    assert engine.stats().kv_cache_usage == 0


def test_an_answer_that_goes_on_may_fail_too_and_only_behind_what_it_has() -> None:
    engine = backend(sim_failure_rate=1.0)
    for request_id in range(20):
        add(engine, request_id, output_token_ids=[97] * 10, max_tokens=30)
    faults = {deltas[-1].fault is not None for deltas in drain(engine).values()}
    assert faults == {True}


@pytest.mark.parametrize("output_token_ids", [[97] * 50, [97] * 51, [-1], [VOCAB_SIZE]])
def test_an_answer_that_cannot_go_on_is_refused(output_token_ids: list[int]) -> None:
    engine = backend()
    with pytest.raises(RequestRefused) as refused:
        add(engine, output_token_ids=output_token_ids)
    assert refused.value.fault.kind == "invalid"
    assert engine.next_step_s() is None


# --- sampling settings ---


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 0.01}, {"min_p": 0.9}], ids=lambda cut: next(iter(cut)))
def test_truncation_removes_what_a_high_temperature_brings(cut: dict[str, Any]) -> None:
    wild = text(answer(seed=1, temperature=3.0, max_tokens=200))
    tame = text(answer(seed=1, temperature=3.0, max_tokens=200, **cut))
    assert wild != tame
    assert set(tame.lower().replace(".", "").split()[:-1]) <= set(simulated_script._WORDS)
    assert not set(wild.lower().replace(".", "").split()[:-1]) <= set(simulated_script._WORDS)


def test_temperature_matters_with_a_seed() -> None:
    def strays(temperature: float) -> int:
        params = {"seed": 1, "temperature": temperature, "max_tokens": 500}
        scripted = tokens(answer(seed=1, temperature=temperature, max_tokens=500, top_k=1))
        return sum(a != b for a, b in zip(tokens(answer(**params)), scripted, strict=True))

    assert strays(0.2) <= strays(1.0) < strays(2.0) < strays(5.0)


def test_repetition_penalty_counts_the_prompt_too() -> None:
    def capitals_drawn(prompt: list[int]) -> int:
        """Of 300 first tokens: answers begin with a capital."""
        firsts = [tokens(answer(prompt, seed=seed, max_tokens=1, repetition_penalty=1.5))[0] for seed in range(300)]
        return sum(chr(token_id).isupper() for token_id in firsts)

    capitals, digits = list(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"), list(b"0123456789")
    assert capitals_drawn(capitals) < 250 < capitals_drawn(digits)


def test_bad_words_never_come() -> None:
    plain = tokens(answer())
    for word in (tuple(b"e"), tuple(plain[10:13]), tuple(plain[:2])):
        at = next(i for i in range(len(plain)) if tuple(plain[i : i + len(word)]) == word) + len(word) - 1
        other = tokens(answer(bad_words_token_ids=(word, (1, 2))))
        assert other[:at] == plain[:at] and other[at] != plain[at]
        assert bytes(word) not in bytes(other)
    assert tokens(answer(bad_words_token_ids=((1, 2),))) == plain


def test_a_bad_end_token_ends_nothing() -> None:
    natural = tokens(answer(max_tokens=4000, stop_token_ids=EOS))
    deltas = answer(max_tokens=len(natural) + 20, stop_token_ids=EOS, bad_words_token_ids=(EOS,))
    assert tokens(deltas)[: len(natural) - 1] == natural[:-1] and deltas[-1].finish_reason == "length"


def test_prompt_log_probabilities_cover_the_prompt_and_agree_on_a_shared_prefix() -> None:
    first = answer(prompt_logprobs=True, logprobs=2)
    longer = answer([*PROMPT, 65, 66], prompt_logprobs=True, logprobs=2)[0].prompt_logprobs
    ours = first[0].prompt_logprobs
    assert ours is not None and longer is not None
    assert ours[0] is None and longer[: len(ours)] == ours
    assert [entry.token_id for entry in ours[1:] if entry is not None] == PROMPT[1:]
    assert all(entry is not None and len(entry.top) == 2 for entry in ours[1:])
    assert all(delta.prompt_logprobs is None for delta in first[1:])


def test_honours_every_field_of_the_sampling_settings() -> None:
    fields = {field.name for field in msgspec.structs.fields(SamplingParams)}
    assert backend(token_bytes=TOKEN_BYTES).capabilities.parameters == fields
    assert backend().capabilities.parameters == fields - {"grammar"}


# --- grammars ---

JSON = r"""start: object
value: object | array | STRING | NUMBER | "true" | "false" | "null"
object: "{" (member (COMMA member)*)? "}"
member: STRING COLON value
array: "[" (value (COMMA value)*)? "]"
COLON: /: ?/
COMMA: /, ?/
STRING: /"([^"\\\x00-\x1f]|\\["\\\/bfnrt])*"/
NUMBER: /-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,16})?([eE][+-]?[0-9]{1,3})?/
"""
PERSON = r"""start: "{\"name\": " STRING ", \"age\": " /[1-9][0-9]?/ ", \"tags\": [" (STRING (", " STRING)*)? "]}"
STRING: /"([^"\\\x00-\x1f]|\\["\\\/bfnrt])*"/
"""


def shaped(grammar: str, prompt: list[int] = PROMPT, **sampling: Any) -> list[TokenDelta]:
    settings = {"max_tokens": 2000, "stop_token_ids": EOS, "grammar": grammar} | sampling
    return answer(prompt, {"token_bytes": TOKEN_BYTES}, **settings)


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_under_a_grammar_fits_it_and_ends(seed: int) -> None:
    for grammar in (JSON, PERSON):
        deltas = shaped(grammar, seed=seed, temperature=1.0)
        assert isinstance(json.loads(text(deltas)), dict)
        assert deltas[-1].finish_reason == "stop" and len(tokens(deltas)) < 500


def test_strings_under_a_grammar_have_words_of_the_script() -> None:
    person = json.loads(text(shaped(PERSON, list(b"Another"))))
    assert any(character.isalpha() for character in person["name"])


def test_an_answer_that_nothing_can_follow_ends_without_a_stop_token() -> None:
    deltas = shaped('start: "yes" | "no"', stop_token_ids=(), min_tokens=40)
    assert text(deltas) in ("yes", "no") and deltas[-1].finish_reason == "stop"
    assert bytes(tokens(deltas)).decode() == text(deltas)


def test_an_answer_that_could_go_on_ends_with_a_stop_token() -> None:
    deltas = shaped("start: /[0-9]+/")
    assert tokens(deltas)[-1] == END_OF_SEQUENCE and text(deltas).isdigit()


@pytest.mark.parametrize("min_tokens", [0, 600])
def test_free_text_under_a_grammar_is_what_it_is_without_one(min_tokens: int) -> None:
    free = answer(max_tokens=2000, stop_token_ids=EOS, min_tokens=min_tokens)
    assert tokens(shaped("start: /(.|\\n)*/", min_tokens=min_tokens)) == tokens(free)


@pytest.mark.parametrize("sampling", [{}, {"seed": 3, "temperature": 1.2}, {"logprobs": 2, "frequency_penalty": 0.5}])
def test_an_answer_under_a_grammar_goes_on_from_any_token(sampling: dict[str, Any]) -> None:
    """What is left of a text of one digit, a comma and letters, by hand."""
    whole = shaped("start: /[0-9]{6},[a-z]{1,30}/", **sampling)
    said = tokens(whole)
    for count in range(1, len(said)):
        digits, letters = max(0, 6 - count), max(0, count - 7)
        left = f"[a-z]{{{int(not letters)},{30 - letters}}}" if count > 6 else f"[0-9]{{{digits}}},[a-z]{{1,30}}"
        rest = shaped_from(said[:count], f"start: /{left}/", **sampling)
        assert tokens(rest) == said[count:] and rest[-1].finish_reason == "stop"


def shaped_from(given: list[int], grammar: str, **sampling: Any) -> list[TokenDelta]:
    engine = backend(token_bytes=TOKEN_BYTES)
    settings = {"max_tokens": 2000, "stop_token_ids": EOS, "grammar": grammar} | sampling
    add(engine, 1, PROMPT, given, **settings)
    return drain(engine)[1]


def test_an_answer_that_is_whole_when_it_is_gone_on_with_ends_without_a_token() -> None:
    [delta] = shaped_from(list(b"yes"), "start: ")
    assert delta.token_ids == [] and delta.finish_reason == "stop"


def test_a_bias_or_a_penalty_cannot_break_a_grammar() -> None:
    bias = {token_id: 100.0 for token_id in (ord("!"), END_OF_SEQUENCE)}
    assert json.loads(text(shaped(PERSON, logit_bias=bias, repetition_penalty=1.9, frequency_penalty=2.0)))


def test_a_grammar_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(RequestRefused) as caught:
        shaped("start: nothing")
    assert caught.value.fault.kind == "invalid" and caught.value.fault.param == "grammar"


def test_without_the_bytes_of_tokens_a_grammar_is_refused() -> None:
    assert backend().capabilities.grammar_syntax is None
    with pytest.raises(RequestRefused, match="does not support grammar"):
        answer(grammar=PERSON)


@pytest.mark.parametrize("count", [2, pytest.param(40, marks=pytest.mark.long)])
def test_an_answer_goes_on_from_any_token_under_what_remains_of_its_schema(count: int) -> None:
    splits = 0
    for seed in range(count):
        schema = from_json_schema(random_schema(seed), param="schema")
        sampling: dict[str, Any] = {"max_tokens": 100, "temperature": 1.5, "seed": seed}
        whole = shaped(to_lark(schema), **sampling)
        said = [token_id for token_id in tokens(whole) if token_id != END_OF_SEQUENCE]
        for given_tokens in range(1, len(said)):
            begun = bytes(said[:given_tokens])
            if begun.decode(errors="ignore").encode() == begun:
                rest = shaped_from(said[:given_tokens], to_lark(remaining(schema, begun.decode())), **sampling)
                assert tokens(rest) == tokens(whole)[given_tokens:]
                assert rest[-1].finish_reason == whole[-1].finish_reason
                splits += 1
    assert splits > 10 * count


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.long)])
def test_most_answers_end_and_validate_against_any_schema(count: int) -> None:
    engine, schemas = backend(token_bytes=TOKEN_BYTES), {}
    for seed in range(count):
        schemas[seed] = random_schema(seed)
        grammar = to_lark(from_json_schema(schemas[seed], param="schema"))
        settings: dict[str, Any] = {"max_tokens": 400, "temperature": 1.5, "seed": seed}
        add(engine, seed, stop_token_ids=EOS, grammar=grammar, **settings)
    answers = drain(engine)
    finished = [seed for seed in schemas if answers[seed][-1].finish_reason == "stop"]
    assert len(finished) > 0.9 * count
    for seed in finished:
        validator = Draft202012Validator(schemas[seed], format_checker=Draft202012Validator.FORMAT_CHECKER)
        validator.validate(json.loads(text(answers[seed])))


# --- refusals ---


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([], {}, "empty"),
        ([VOCAB_SIZE], {}, "outside"),
        ([-1], {}, "outside"),
        (PROMPT, {"max_tokens": 4096}, "exceeds the context"),
        (PROMPT, {"logprobs": 21}, "up to 20 others"),
        (PROMPT, {"logit_bias": {VOCAB_SIZE: 1.0}}, "vocabulary"),
    ],
)
def test_refuses_what_it_cannot_do_and_keeps_nothing_of_it(
    prompt: list[int], sampling: dict[str, Any], message: str
) -> None:
    engine = backend()
    with pytest.raises(RequestRefused, match=message) as caught:
        add(engine, 1, prompt, **sampling)
    assert caught.value.fault.kind == "invalid"
    assert engine.next_step_s() is None and engine.stats().waiting == 0


# --- pace ---


def test_the_first_token_and_the_later_ones_come_at_their_pace(clock: Clock) -> None:
    engine = backend(clock, sim_ttft_ms=200.0, sim_itl_ms=50.0)
    add(engine, max_tokens=5)
    started = clock.now
    times = []
    while (wait_s := engine.next_step_s()) is not None:
        clock.now += wait_s
        if engine.step():
            times.append(clock.now - started)
    assert times == [pytest.approx(0.2 + 0.05 * index, abs=0.0101) for index in range(5)]


def test_nothing_comes_before_its_time(clock: Clock) -> None:
    engine = backend(clock, sim_ttft_ms=200.0)
    add(engine)
    clock.now += 0.19
    assert engine.step() == []
    clock.now += 0.02
    assert len(engine.step()) == 1


def test_without_a_pace_every_step_brings_one_token_for_each(clock: Clock) -> None:
    engine = backend(
        clock,
    )
    for request_id in range(10):
        add(engine, request_id, max_tokens=3)
    for _ in range(3):
        assert engine.next_step_s() == 0.0
        assert sorted(delta.request_id for delta in engine.step()) == list(range(10))
    assert engine.next_step_s() is None


def test_a_late_step_is_made_up_for_but_a_long_pause_is_not(clock: Clock) -> None:
    engine = backend(clock, sim_itl_ms=100.0)
    add(engine, max_tokens=1000)
    engine.step()
    clock.now += 0.35
    assert [len(engine.step()) for _ in range(4)] == [1, 1, 1, 0]
    clock.now += 600
    burst = 0
    while engine.step():
        burst += 1
    assert burst <= 12


def test_a_thousand_paced_streams_take_few_steps(clock: Clock) -> None:
    engine = backend(clock, sim_itl_ms=100.0, max_concurrency=1000)
    for request_id in range(1000):
        clock.now += 0.0001
        add(engine, request_id, max_tokens=100)
    end, steps, produced = clock.now + 1.0, 0, 0
    while clock.now < end:
        wait_s = engine.next_step_s()
        assert wait_s is not None
        clock.now += max(wait_s, 1e-6)
        produced += len(engine.step())
        steps += 1
    assert 9000 <= produced <= 12_000 and steps <= 250


# --- capacity ---


def test_more_than_its_concurrency_waits_in_order() -> None:
    engine = backend(max_concurrency=2)
    for request_id in range(5):
        add(engine, request_id, max_tokens=2)
    assert (engine.stats().running, engine.stats().waiting) == (2, 3)
    finished = []
    while engine.next_step_s() is not None:
        finished += [delta.request_id for delta in engine.step() if delta.finish_reason is not None]
    assert finished == [0, 1, 2, 3, 4]


def test_what_does_not_fit_the_kv_pool_waits() -> None:
    engine = backend(kv_cache_gb=100 * simulated.KV_BYTES_PER_TOKEN / 10**9)
    assert engine.capabilities.context_length == 100
    add(engine, 1, [65] * 40, max_tokens=20)
    add(engine, 2, [65] * 40, max_tokens=20)
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    assert engine.stats().kv_cache_usage == pytest.approx(0.4)
    engine.step()
    assert engine.stats().kv_cache_usage == pytest.approx(0.41)
    drain(engine)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_cache_usage, stats.generated_tokens) == (0, 0, 0.0, 40)


@pytest.mark.parametrize("victim", [1, 2, 3], ids=["running", "running too", "waiting"])
def test_cancelling_frees_the_slot_at_once(victim: int) -> None:
    engine = backend(max_concurrency=2)
    for request_id in (1, 2, 3):
        add(engine, request_id)
    engine.step()
    engine.cancel(victim)
    engine.cancel(victim)
    engine.cancel(99)
    assert (engine.stats().running, engine.stats().waiting) == (2, 0)
    assert victim not in {delta.request_id for delta in engine.step()}
    for request_id in (1, 2, 3):
        engine.cancel(request_id)
    assert engine.stats().kv_cache_usage == 0.0 and engine.next_step_s() is None


def test_many_cancelled_requests_leave_nothing(clock: Clock) -> None:
    engine = backend(clock, sim_ttft_ms=3_600_000.0, max_concurrency=10)
    for request_id in range(5000):
        add(engine, request_id)
        engine.cancel(request_id)
    assert engine._reserved_tokens == 0 and not engine._running and not engine._waiting
    assert len(engine._due) < 100


def test_after_recovery_nothing_is_left_and_it_serves() -> None:
    engine = backend(max_concurrency=1)
    add(engine, 1)
    add(engine, 2)
    engine.step()
    engine.recover()
    assert engine.next_step_s() is None and engine.stats().kv_cache_usage == 0.0
    add(engine, 3)
    assert tokens(drain(engine)[3]) == tokens(answer())


# --- prefix cache ---


def test_a_prompt_seen_before_is_cached_in_whole_blocks() -> None:
    engine = backend()
    prompt = list(range(100))

    def cached(prompt: list[int], **sampling: Any) -> int | None:
        add(engine, 1, prompt, max_tokens=2, **sampling)
        first, second = drain(engine)[1]
        assert second.cached_tokens is None
        return first.cached_tokens

    assert cached(prompt) == 0
    assert cached(prompt) == 96
    assert cached([*prompt[:50], 7, 7, 7]) == 48
    assert cached([9, *prompt]) == 0
    assert cached(prompt[:96]) == 96 - CACHE_BLOCK_TOKENS  # the last token is always computed
    assert cached(prompt, prompt_logprobs=True) == 0


def test_the_prefix_cache_is_bounded() -> None:
    engine = backend(context_length=320, max_concurrency=1)
    for index in range(100):
        add(engine, index, [index] * 200, max_tokens=1)
        drain(engine)
    assert len(engine._cached_blocks) <= 320 // CACHE_BLOCK_TOKENS


# --- failures ---


def outcomes(rate: float, count: int = 400) -> list[list[TokenDelta]]:
    engine = backend(sim_failure_rate=rate, max_concurrency=count)
    for request_id in range(count):
        add(engine, request_id)
    return list(drain(engine).values())


def test_the_failure_rate_is_the_fraction_that_fails() -> None:
    failed = [deltas for deltas in outcomes(0.25) if deltas[-1].fault is not None]
    assert 60 <= len(failed) <= 140
    at_once = [deltas for deltas in failed if len(deltas) == 1]
    assert len(failed) / 4 < len(at_once) < 3 * len(failed) / 4
    assert "--sim-failure-rate" in str(failed[0][-1].fault)


def test_failures_repeat_exactly_and_stop_at_none_and_all() -> None:
    assert outcomes(0.5) == outcomes(0.5)
    assert all(deltas[-1].fault is None for deltas in outcomes(0.0))
    assert all(deltas[-1].fault is not None for deltas in outcomes(1.0))


def test_a_failed_request_frees_its_slot() -> None:
    engine = backend(sim_failure_rate=1.0, max_concurrency=1)
    for request_id in range(20):
        add(engine, request_id)
    assert len(drain(engine)) == 20
    assert engine.stats().kv_cache_usage == 0.0


# --- embeddings ---


def test_embeddings_are_normalised_and_depend_on_the_input_alone() -> None:
    engine = backend()
    vector = struct.unpack("<64f", engine.embed(PROMPT))
    assert len(vector) == engine.capabilities.embedding_dim
    assert math.fsum(value * value for value in vector) == pytest.approx(1.0)
    assert engine.embed(PROMPT) == backend().embed(PROMPT) != engine.embed([*PROMPT, 1])
    with pytest.raises(RequestRefused, match="exceeds the context"):
        engine.embed([65] * 5000)


def test_says_what_it_is() -> None:
    assert backend().capabilities.engine == "simulated"
    assert backend(context_length=100).capabilities.context_length == 100
