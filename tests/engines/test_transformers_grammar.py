"""Grammars in the transformers engine: what a tiny model says under them, beside others, and gone on with."""

import json
import re
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from chatfleet.chat.grammar import from_json_schema, remaining, to_lark
from chatfleet.engines.base import RequestRefused, SamplingParams
from chatfleet.engines.matching import Grammars
from chatfleet.engines.transformers.backend import TransformersBackend
from chatfleet.engines.transformers.sampling import RowState, Sampler
from engines.transformers_models import VOCAB_SIZE, Driver, random_prompt, save_model
from support.schemas import random_schema
from support.wire import PATIENCE_S

ALL_TOKEN_BYTES = [
    *(bytes([byte]) for byte in range(256)),
    *(b'{"', b'": ', b'", "', b'"}', b'"]', b"], ", b"true", b"ab", b"abc", b"a", b" the", "é".encode(), b"12", b"1"),
    *(b'"name"', b'"age"', b"[CALL]", b"\xe2\x82", b"0.5", b"-", b'["', b"\\n"),
]
TOKEN_BYTES = [b"" if token == b"\xac" else token for token in ALL_TOKEN_BYTES]
"""Without one of the bytes that characters have."""
END = 290
"""A control token: it is no text."""
STOP = {"stop_token_ids": (END,)}
KV_TOKEN_BYTES = 3 * 2 * 2 * 16 * 4

PERSON = r"""start: "{" "\"name\"" COLON STRING "," " "? "\"age\"" COLON /[1-9][0-9]?/ "}"
COLON: /: ?/
STRING: /"([^"\\\x00-\x1f]|\\["\\\/bfnrt]){0,12}"/
"""
PERSON_FITS = re.compile(r'\{"name": ?"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]){0,12}",? ?"age": ?[1-9][0-9]?\}')


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture(scope="module")
def driver(model: Path) -> Driver:
    return driver_of(model)


@pytest.fixture(scope="module")
def exact(model: Path) -> Driver:
    return driver_of(model, deterministic=True)


def driver_of(model: Path, **config: Any) -> Driver:
    return Driver(model, token_bytes=TOKEN_BYTES, **config)


def text(token_ids: list[int]) -> str:
    return b"".join(ALL_TOKEN_BYTES[token_id] for token_id in token_ids if token_id != END).decode()


def ending(driver: Driver, request_id: int) -> str | None:
    return driver.deltas[request_id][-1].finish_reason


# --- what may be said ---


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.5, "seed": 2, "top_k": 3},
        {"temperature": 1.5, "seed": 3, "top_k": 200},
        {"temperature": 1.5, "seed": 4, "top_p": 0.1},
        {"temperature": 1.0, "seed": 5, "min_p": 0.5},
        {"temperature": 1.0, "seed": 6, "repetition_penalty": 1.8, "frequency_penalty": 2.0},
        {"logit_bias": {ord("!"): 100.0, END: 100.0}},
        {"temperature": 1.0, "seed": 7, "bad_words_token_ids": ((ord("a"),), (ord('"'), ord("b")))},
    ],
)
def test_an_answer_fits_its_grammar_and_ends(driver: Driver, sampling: dict[str, Any]) -> None:
    request_id = driver.add(random_prompt(12), max_tokens=80, grammar=PERSON, **STOP, **sampling)
    driver.finish()
    said = text(driver.tokens(request_id))
    assert PERSON_FITS.fullmatch(said) and json.loads(said)["age"] < 100
    assert ending(driver, request_id) == "stop"


@pytest.mark.long
def test_choices_are_among_all_ways_to_write_them_in_tokens(driver: Driver) -> None:
    written = {
        tuple(driver.answer(random_prompt(8), grammar='start: "abc"', temperature=5.0, seed=seed)) for seed in range(40)
    }
    assert {text(list(tokens)) for tokens in written} == {"abc"}
    assert len(written) > 2


def test_control_tokens_with_a_text_are_in_a_grammar(driver: Driver) -> None:
    call = TOKEN_BYTES.index(b"[CALL]")
    said = driver.answer(random_prompt(8), grammar='start: "[CALL]" /[0-9]/', logit_bias={call: 100.0})
    assert said[0] == call and len(said) == 2


def test_a_control_token_is_never_in_a_text(driver: Driver) -> None:
    bias = {token_id: 100.0 for token_id in range(len(TOKEN_BYTES), VOCAB_SIZE)}
    said = driver.answer(random_prompt(8), max_tokens=30, grammar="start: /(.|\\n)*/", logit_bias=bias, **STOP)
    assert said == [END]  # a stop token may come where the text may end, and no other
    said = driver.answer(random_prompt(8), max_tokens=30, grammar="start: /(.|\\n)*/", logit_bias=bias)
    assert len(said) == 30 and max(said) < len(TOKEN_BYTES)


def test_log_probabilities_are_of_the_model_without_the_grammar(driver: Driver) -> None:
    free = driver.add(random_prompt(12), max_tokens=1, logprobs=3)
    bound = driver.add(random_prompt(12), max_tokens=1, logprobs=3, grammar=PERSON)
    driver.finish()
    [[first], [other]] = (driver.deltas[request_id][0].logprobs or [] for request_id in (free, bound))
    assert [token_id for token_id, _ in other.top] == [token_id for token_id, _ in first.top]
    assert other.logprob < first.logprob and TOKEN_BYTES[other.token_id] in (b"{", b'{"')


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_is_drawn_as_if_all_that_grammars_forbid_had_no_chance(dtype: torch.dtype) -> None:
    grammars = Grammars(TOKEN_BYTES, VOCAB_SIZE)
    masks = [None, "start: /[a-h]+/", 'start: "abc"', "start: /(.|\\n)+/", None]
    settings = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 2},
        {"temperature": 1.0, "top_p": 0.3},
        {"temperature": 1.0, "min_p": 0.2, "logit_bias": {ord("a"): 2.0}},
    ]
    generator = torch.Generator().manual_seed(0)
    sampler = Sampler(VOCAB_SIZE, torch.device("cpu"))
    for seed in range(20):
        logits = (3 * torch.randn(len(masks) * len(settings), VOCAB_SIZE, generator=generator)).to(dtype)
        closed, bound, free = logits.clone(), [], []
        for row, (grammar, each) in enumerate(product(masks, settings)):
            sampling = SamplingParams(max_tokens=9, seed=seed, **each)
            matcher = None if grammar is None else grammars.matcher(grammars.compile(grammar).result(), ())
            bound.append(RowState(sampling, [1], [], matcher))
            free.append(RowState(sampling, [1], []))
            if matcher is not None:
                bits = int.from_bytes(matcher.allowed(may_stop=True), "little")
                closed[row, [token_id for token_id in range(VOCAB_SIZE) if not bits >> token_id & 1]] = float("-inf")
        kept = logits.clone()
        assert sampler.sample(logits, bound).token_ids == sampler.sample(closed, free).token_ids
        assert torch.equal(logits, kept)


# --- where it ends ---


@pytest.mark.parametrize("sampling", [{}, {"stop_token_ids": (END,)}, {"min_tokens": 60, "stop_token_ids": (END,)}])
def test_an_answer_that_nothing_can_follow_ends_at_once(driver: Driver, sampling: dict[str, Any]) -> None:
    request_id = driver.add(random_prompt(8), max_tokens=60, grammar='start: "ab" | "12"', **sampling)
    driver.finish()
    assert text(driver.tokens(request_id)) in ("ab", "12") and END not in driver.tokens(request_id)
    assert ending(driver, request_id) == "stop"


def test_an_answer_that_ends_with_its_last_token_is_whole(driver: Driver) -> None:
    request_id = driver.add(random_prompt(8), max_tokens=3, grammar="start: /[b-d]{3}/")
    driver.finish()
    assert len(driver.tokens(request_id)) == 3 and ending(driver, request_id) == "stop"


def test_an_answer_that_could_go_on_is_cut_at_its_length(driver: Driver) -> None:
    request_id = driver.add(random_prompt(8), max_tokens=5, grammar="start: /[0-9]+/")
    driver.finish()
    assert len(driver.tokens(request_id)) == 5 and ending(driver, request_id) == "length"


def test_a_stop_token_comes_only_where_the_grammar_is_complete(driver: Driver) -> None:
    said = driver.answer(
        random_prompt(8), grammar="start: /[0-9]{2,9}/", logit_bias={END: 100.0, ord("7"): 90.0}, **STOP
    )
    assert said == [ord("7"), ord("7"), END]


def test_stop_tokens_wait_for_as_many_tokens_as_asked_for(driver: Driver) -> None:
    bias = {END: 100.0, ord("7"): 90.0}
    said = driver.answer(random_prompt(8), grammar="start: /[0-9]{2,9}/", logit_bias=bias, min_tokens=4, **STOP)
    assert said == [ord("7")] * 4 + [END]


def test_a_stop_token_that_is_the_only_text_allowed_comes_before_as_many_tokens_as_asked_for(driver: Driver) -> None:
    request_id = driver.add(random_prompt(8), grammar="start: /b;c/", stop_token_ids=(ord(";"),), min_tokens=10)
    driver.finish()
    assert text(driver.tokens(request_id)) == "b;c" and ending(driver, request_id) == "stop"


# --- beside others ---


@pytest.mark.long
def test_requests_with_and_without_grammars_run_beside_each_other(exact: Driver) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"grammar": PERSON},
        {"temperature": 1.0, "seed": 1},
        {"grammar": PERSON, "temperature": 1.0, "seed": 1},
        {"grammar": "start: /([a-z]{2,5} ){3,6}/", "temperature": 1.5, "seed": 2, "top_p": 0.8},
        {"grammar": 'start: "yes" | "no"'},
    ]
    alone = [exact.answer(random_prompt(10, number), max_tokens=40, **each) for number, each in enumerate(settings)]
    requests = [exact.add(random_prompt(10, number), max_tokens=40, **each) for number, each in enumerate(settings)]
    exact.finish()
    assert [exact.tokens(request_id) for request_id in requests] == alone


def test_choices_of_one_request_share_a_grammar_and_differ(driver: Driver) -> None:
    grammar = 'start: "[" /[a-z]{8}/ "]"'
    requests = [driver.add(random_prompt(10), grammar=grammar, temperature=2.0, seed=seed) for seed in range(6)]
    driver.finish()
    answers = [text(driver.tokens(request_id)) for request_id in requests]
    assert all(re.fullmatch(r"\[[a-z]{8}\]", answer) for answer in answers)
    assert len(set(answers)) > 3


@pytest.mark.parametrize("bad", ["start: nothing", "start: (", 'start: "€"', "start: /a{1,100000}b{1,100000}" * 9000])
def test_a_grammar_that_cannot_be_used_fails_its_request_alone(exact: Driver, bad: str) -> None:
    """The third asks for a character of which the vocabulary has not the last byte."""
    expected = exact.answer(random_prompt(10), grammar=PERSON)
    neighbours = [exact.add(random_prompt(10), grammar=PERSON), exact.add(random_prompt(10))]
    exact.step()
    try:
        request_id = exact.add(random_prompt(10), grammar=bad)
        exact.finish()
        fault = exact.deltas[request_id][-1].fault
    except RequestRefused as exc:
        fault = exc.fault
        exact.finish()
    assert fault is not None and fault.kind == "invalid" and fault.param == "grammar"
    assert exact.tokens(neighbours[0]) == expected and len(exact.tokens(neighbours[1])) == 16
    assert exact.backend.stats().running == exact.backend.stats().waiting == 0


def test_a_request_can_be_cancelled_while_its_grammar_is_compiled(model: Path) -> None:
    driver = driver_of(model)
    words = " | ".join(f'"word{number}"' for number in range(20_000))
    request_id = driver.add(random_prompt(10), grammar=f"start: {words}")
    assert driver.backend.stats().waiting == 1 and driver.backend.next_step_s() is not None
    driver.backend.cancel(request_id)
    assert driver.backend.next_step_s() is None and driver.backend.step() == []


@pytest.mark.long
def test_neighbours_get_tokens_while_a_grammar_is_compiled(model: Path) -> None:
    driver = driver_of(model)
    neighbour = driver.add(random_prompt(10), max_tokens=200)
    driver.step()
    nested = "\n".join(f'r{number}: "a" r{number + 1} |' for number in range(8000))
    request_id = driver.add(random_prompt(10), grammar=f'start: r0\n{nested}\nr8000: "z"\n', max_tokens=3)
    before = len(driver.tokens(neighbour))
    deadline = time.monotonic() + PATIENCE_S
    while not driver.deltas[request_id] and time.monotonic() < deadline:
        driver.step()
    assert len(driver.tokens(neighbour)) > before + 2
    driver.finish()
    assert driver.deltas[request_id][-1].finish_reason in ("stop", "length")


def test_a_failed_engine_forgets_who_waits_for_a_grammar(model: Path) -> None:
    driver = driver_of(model)
    driver.add(random_prompt(10), grammar="start: " + " | ".join(f'"word{number}"' for number in range(20_000)))
    driver.backend.recover()
    assert driver.backend.next_step_s() is None


def test_an_engine_that_was_told_no_texts_of_tokens_refuses_grammars(model: Path) -> None:
    driver = Driver(model)
    assert driver.backend.capabilities.grammar_syntax is None
    with pytest.raises(RequestRefused, match="does not support grammar"):
        driver.add(random_prompt(10), grammar=PERSON)


# --- gone on with ---


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 9}, {"frequency_penalty": 1.0}])
def test_an_answer_goes_on_behind_any_of_its_tokens(exact: Driver, sampling: dict[str, Any]) -> None:
    """What is left of a text of six digits and six letters, by hand; it may be written in tokens of one byte alone."""
    settings = {"stop_token_ids": (END,), "max_tokens": 20, "logit_bias": {i: -100.0 for i in range(256, VOCAB_SIZE)}}
    settings |= sampling
    whole = exact.answer(random_prompt(9), grammar="start: /[0-9]{6}[a-z]{0,6}/", **settings)
    assert len(whole) >= 7
    for given in range(1, len(whole)):
        left = f"[0-9]{{{6 - given}}}[a-z]{{0,6}}" if given < 6 else f"[a-z]{{0,{12 - given}}}"
        rest = exact.answer(random_prompt(9), whole[:given], grammar=f"start: /{left}/", **settings)
        assert rest == whole[given:]


@pytest.mark.parametrize("sampling", [{}, pytest.param({"temperature": 1.5, "seed": 2}, marks=pytest.mark.long)])
@pytest.mark.long
def test_an_answer_goes_on_under_what_remains_of_its_schema(exact: Driver, sampling: dict[str, Any]) -> None:
    properties = {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 7}}
    schema = from_json_schema({"type": "object", "properties": properties, "required": ["age"]}, param="schema")
    settings = {"max_tokens": 24, **STOP, **sampling}
    whole = exact.answer(random_prompt(9), grammar=to_lark(schema), **settings)
    splits = 0
    for given in range(1, len(whole)):
        try:
            begun = text(whole[:given])
        except UnicodeDecodeError:  # a character is in parts
            continue
        left = to_lark(remaining(schema, begun))
        assert exact.answer(random_prompt(9), whole[:given], grammar=left, **settings) == whole[given:]
        splits += 1
    assert splits > 3


def test_an_answer_that_was_whole_already_ends_without_a_token(driver: Driver) -> None:
    request_id = driver.add(random_prompt(9), list(b"yes"), grammar="start: ", logprobs=1)
    driver.finish()
    [delta] = driver.deltas[request_id]
    assert delta.finish_reason == "stop" and delta.token_ids == [] and delta.logprobs is None


@pytest.mark.long
def test_an_answer_under_a_grammar_survives_preemption(model: Path) -> None:
    grammar = "start: /([a-z]{3} ){12,14}/"
    settings = {"max_tokens": 60, "grammar": grammar, "temperature": 1.0, "seed": 4}
    ample, tight = (
        driver_of(model, deterministic=True, **config)
        for config in ({}, {"kv_cache_gb": (280 * KV_TOKEN_BYTES + 1) / 1e9})
    )
    prompts = [random_prompt(60, seed) for seed in range(4)]
    expected = [ample.answer(prompt, **settings) for prompt in prompts]
    requests = [tight.add(prompt, **settings) for prompt in prompts]
    tight.finish()
    assert isinstance(tight.backend, TransformersBackend) and tight.backend._scheduler.preemptions > 0
    assert [tight.tokens(request_id) for request_id in requests] == expected
    assert all(re.fullmatch(r"([a-z]{3} ){12,14}", text(token_ids)) for token_ids in expected)


# --- schemas ---

ENDS = {
    token_id: 3.0 for token_id in (ord('"'), ord("}"), ord("]"), TOKEN_BYTES.index(b'"}'), TOKEN_BYTES.index(b'"]'))
}


@pytest.mark.long
def test_finished_answers_validate_against_any_schema(model: Path) -> None:
    driver = Driver(model, token_bytes=ALL_TOKEN_BYTES)
    schemas = {}
    for seed in range(500):
        schema = random_schema(seed)
        grammar = to_lark(from_json_schema(schema, param="schema"))
        settings = {"max_tokens": 240, "temperature": 1.5, "seed": seed, "logit_bias": ENDS}
        request_id = driver.add(random_prompt(8, seed), grammar=grammar, **STOP, **settings)
        schemas[request_id] = schema
        if len(schemas) % 32 == 0:
            driver.finish()
    driver.finish()
    assert [delta.fault for request_id in schemas for delta in driver.deltas[request_id] if delta.fault] == []
    finished = [request_id for request_id in schemas if ending(driver, request_id) == "stop"]
    assert len(finished) > 350
    for request_id in finished:
        Draft202012Validator(schemas[request_id], format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
            json.loads(text(driver.tokens(request_id)))
        )
