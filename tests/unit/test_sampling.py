"""From a request's fields to an engine's settings."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from chatfleet.chat.tokenizer import ByteTokenizer, Tokenizer
from chatfleet.core.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from chatfleet.engines.base import SamplingParams
from chatfleet.protocol.chat import ChatCompletionRequest
from chatfleet.worker.sampling import (
    check_choices,
    completion_budget,
    for_choice,
    refuse_unsupported_chat,
    requested_top_logprobs,
    sampling_params,
)
from support.fakes import ALL_PARAMETERS, capabilities

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate_json(json.dumps({"messages": MESSAGES, **fields}))


def resolved(request: ChatCompletionRequest, tokenizer: Tokenizer | None = None, **report: Any) -> SamplingParams:
    return sampling_params(
        request,
        max_tokens=10,
        logprobs=None,
        prompt_logprobs=False,
        tokenizer=tokenizer or ByteTokenizer(),
        capabilities=capabilities(**report),
    )


def test_a_silent_request_gets_openais_defaults() -> None:
    assert resolved(chat()) == SamplingParams(max_tokens=10, stop_token_ids=(257,))


def test_ignore_eos_leaves_the_clients_own_stop_tokens() -> None:
    assert resolved(chat(ignore_eos=True, stop_token_ids=[7])).stop_token_ids == (7,)


def test_top_p_zero_is_greedy() -> None:
    assert resolved(chat(top_p=0)).temperature == 0


def test_zero_and_minus_one_both_turn_top_k_off() -> None:
    assert resolved(chat(top_k=-1)) == resolved(chat(top_k=0)) == resolved(chat())


@pytest.mark.parametrize(
    ("field", "value"),
    [("logit_bias", {"5": 3}), ("min_p", 0.1), ("presence_penalty", 1), ("min_tokens", 3), ("seed", 4)],
)
def test_what_the_engine_does_not_honour_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter, match=field) as caught:
        resolved(chat(**{field: value}), parameters=ALL_PARAMETERS - {field})
    assert caught.value.param == field


@pytest.mark.parametrize(
    "field", [{"logit_bias": {"259": 1}}, {"stop_token_ids": [300]}, {"bad_words_ids": [[5], [6, 259]]}]
)
def test_token_ids_outside_the_vocabulary_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="259 tokens"):
        resolved(chat(**field))


class WordTokenizer(ByteTokenizer):
    """`bad` is token 3 and ` bad` token 4; other text is a token per byte."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        known = {"bad": [3], " bad": [4]}.get(text)
        return super().encode(text, add_special_tokens=add_special_tokens) if known is None else known


def test_a_bad_word_is_one_at_the_beginning_and_behind_a_space() -> None:
    assert resolved(chat(bad_words=["bad"]), WordTokenizer()).bad_words_token_ids == ((3,), (4,))
    assert resolved(chat(bad_words=[" bad", "bad"]), WordTokenizer()).bad_words_token_ids == ((3,), (4,))


def test_a_space_that_is_a_token_of_its_own_makes_no_other_word() -> None:
    assert resolved(chat(bad_words=["no"])).bad_words_token_ids == (tuple(b"no"),)


def test_words_as_token_ids_are_taken_too() -> None:
    request = chat(bad_words=["no"], bad_words_ids=[[1, 2], [110, 111], [3]])
    assert resolved(request).bad_words_token_ids == ((110, 111), (1, 2), (3,))


@pytest.mark.parametrize("word", ["  ", "x" * 65])
def test_a_word_of_no_or_too_many_tokens_is_refused(word: str) -> None:
    with pytest.raises(InvalidRequest, match="from 1 to 64") as caught:
        resolved(chat(bad_words=[word]))
    assert caught.value.param == "bad_words"


@pytest.mark.parametrize(
    "fields",
    [
        {"bad_words": ["a"] * 129},
        {"bad_words": [""]},
        {"bad_words": ["x" * 257]},
        {"bad_words": "word"},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": [[1] * 65]},
        {"bad_words_ids": [[1]] * 129},
        {"bad_words_ids": [[-1]]},
        {"bad_words_ids": [1]},
    ],
)
def test_bad_words_are_bounded(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        chat(**fields)


@pytest.mark.parametrize("fields", [{"bad_words": ["a"]}, {"bad_words_ids": [[1]]}])
def test_bad_words_that_the_engine_does_not_honour_are_refused_by_the_fields_name(fields: dict[str, Any]) -> None:
    [name] = fields
    with pytest.raises(UnsupportedParameter, match=f"'{name}'") as caught:
        resolved(chat(**fields), parameters=ALL_PARAMETERS - {"bad_words_token_ids"})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "budget"), [(60, None, 40), (60, 40, 40), (99, None, 1), (10, 5, 5)]
)
def test_the_budget_is_what_was_asked_for_or_what_the_context_leaves(
    prompt_tokens: int, max_tokens: int | None, budget: int
) -> None:
    given = completion_budget(prompt_tokens=prompt_tokens, max_tokens=max_tokens, context_length=100, param="messages")
    assert given == budget


@pytest.mark.parametrize(("prompt_tokens", "max_tokens"), [(100, None), (60, 41), (101, 1)])
def test_past_the_context_the_error_has_the_numbers(prompt_tokens: int, max_tokens: int | None) -> None:
    with pytest.raises(ContextLengthExceeded, match=f"100 tokens.*{prompt_tokens} tokens") as caught:
        completion_budget(prompt_tokens=prompt_tokens, max_tokens=max_tokens, context_length=100, param="prompt")
    assert caught.value.param == "prompt"


def test_choices_of_a_seeded_request_have_seeds_of_their_own() -> None:
    seeded = SamplingParams(max_tokens=1, seed=2**63 - 1)
    seeds = {for_choice(seeded, choice).seed for choice in range(4)}
    assert len(seeds) == 4
    assert all(seed is not None and -(2**63) <= seed < 2**63 for seed in seeds)
    assert for_choice(SamplingParams(max_tokens=1), 3).seed is None


def test_more_alternatives_than_the_engine_gives_are_refused() -> None:
    assert requested_top_logprobs(5, "top_logprobs", capabilities()) == 5
    assert requested_top_logprobs(None, "top_logprobs", capabilities(max_top_logprobs=0)) is None
    with pytest.raises(UnsupportedParameter, match="lower 'top_logprobs' to 0"):
        requested_top_logprobs(1, "top_logprobs", capabilities(max_top_logprobs=0))


def test_choices_are_bounded() -> None:
    check_choices(128, "n")
    with pytest.raises(InvalidRequest, match="129"):
        check_choices(129, "n")


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("modalities", ["audio"]),
        ("audio", {"voice": "alloy"}),
        ("store", True),
        ("web_search_options", {}),
        ("moderation", {"model": "m"}),
    ],
)
def test_what_nothing_honours_is_refused_by_name(param: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        refuse_unsupported_chat(chat(**{param: value}), is_in_fleet=False)
    assert caught.value.param == param


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        refuse_unsupported_chat(chat(top_logprobs=2), is_in_fleet=False)
    assert caught.value.param == "top_logprobs"
    for fields, param in (
        ({"prompt_logprobs": 2, "stream": True}, "prompt_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            resolved(chat(**fields))
        assert caught.value.param == param


def test_values_that_ask_for_nothing_are_accepted() -> None:
    refuse_unsupported_chat(
        chat(
            tool_choice="auto",
            response_format={"type": "text"},
            modalities=["text"],
            store=False,
            service_tier="auto",
            user="u",
            metadata={"a": "b"},
        ),
        is_in_fleet=False,
    )
    refuse_unsupported_chat(chat(store=True), is_in_fleet=True)
