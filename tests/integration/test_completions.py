"""/v1/completions, whole answers."""

import re
from statistics import fmean
from typing import Any

import httpx
import pytest
from openai import OpenAI
from openai.types import Completion

from support.processes import Endpoint
from support.wire import chunks, completion_texts, failed

PATH = "/v1/completions"


def texts(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["text"] for choice in choices]


def test_an_answer_has_exactly_the_fields_and_types_of_openai(http: httpx.Client) -> None:
    parsed = Completion.model_validate(http.post(PATH, json={"prompt": "hi"}).json(), strict=True)
    assert not parsed.model_extra and not parsed.choices[0].model_extra
    assert parsed.id.startswith("cmpl-") and parsed.object == "text_completion"
    assert parsed.usage is not None and parsed.usage.prompt_tokens == 2


def test_max_tokens_is_sixteen_by_default(http: httpx.Client) -> None:
    answer = http.post(PATH, json={"prompt": "hi"}).json()
    assert answer["usage"]["completion_tokens"] == 16
    assert len(answer["choices"][0]["text"]) == 16
    assert answer["choices"][0]["finish_reason"] == "length"


def test_every_form_of_prompt_is_the_same_prompt(http: httpx.Client) -> None:
    one = texts(http.post(PATH, json={"prompt": "hi"}))
    assert len(one) == 1
    for prompt in (["hi"], [104, 105], [[104, 105]]):
        assert texts(http.post(PATH, json={"prompt": prompt})) == one


@pytest.mark.parametrize("prompts", [["a", "b"], [[97], [98]]])
def test_choices_are_indexed_prompt_by_prompt(http: httpx.Client, prompts: Any) -> None:
    seeded = {"seed": 3, "temperature": 2, "n": 2}
    apart = [text for prompt in prompts for text in texts(http.post(PATH, json={"prompt": [prompt], **seeded}))]
    together = http.post(PATH, json={"prompt": prompts, **seeded})
    assert texts(together) == apart and len(set(apart)) == 4
    usage = together.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (2, 64, 66)
    streamed = completion_texts(chunks(http.post(PATH, json={"prompt": prompts, **seeded, "stream": True})))
    assert [streamed[index] for index in range(4)] == apart


@pytest.mark.parametrize("prompt", ["Hé", [72, 195, 169], ["Hé"]])
def test_echo_puts_the_prompt_before_the_completion(http: httpx.Client, prompt: Any) -> None:
    (plain,) = texts(http.post(PATH, json={"prompt": prompt}))
    (echoed,) = texts(http.post(PATH, json={"prompt": prompt, "echo": True}))
    assert echoed == "Hé" + plain
    assert texts(http.post(PATH, json={"prompt": prompt, "echo": True, "max_tokens": 0})) == ["Hé"]


def test_log_probabilities_are_parallel_lists_that_match_the_text(http: httpx.Client) -> None:
    choice = http.post(PATH, json={"prompt": "hi", "logprobs": 2}).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert {len(values) for values in logprobs.values()} == {16}
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == list(range(16))
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert logprob <= 0 and top[token] == logprob and len(top) == 2


def test_echo_with_log_probabilities_scores_the_prompt_and_nothing_else(http: httpx.Client) -> None:
    request = {"prompt": "hello", "logprobs": 1, "echo": True, "max_tokens": 0}
    answer = http.post(PATH, json=request).json()
    logprobs = answer["choices"][0]["logprobs"]
    assert answer["choices"][0]["text"] == "hello" and answer["usage"]["completion_tokens"] == 0
    assert logprobs["tokens"] == list("hello") and logprobs["text_offset"] == [0, 1, 2, 3, 4]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert all(logprob <= 0 for logprob in logprobs["token_logprobs"][1:])


def test_the_best_of_many_are_the_likeliest_per_token_best_first(http: httpx.Client) -> None:
    sampled = {"prompt": ["a", "b"], "seed": 3, "temperature": 2, "max_tokens": 12}
    many = http.post(PATH, json={**sampled, "n": 5, "logprobs": 0}).json()
    best = http.post(PATH, json={**sampled, "n": 2, "best_of": 5})
    expected = []
    for of_prompt in (many["choices"][:5], many["choices"][5:]):
        means = {c["text"]: fmean(c["logprobs"]["token_logprobs"]) for c in of_prompt}
        assert len(means) == 5
        expected += sorted(means, key=lambda text: -means[text])[:2]
    assert texts(best) == expected
    assert all(choice["logprobs"] is None for choice in best.json()["choices"])
    assert best.json()["usage"]["completion_tokens"] == many["usage"]["completion_tokens"] == 120
    scored = http.post(PATH, json={**sampled, "n": 2, "best_of": 5, "logprobs": 2}).json()
    assert [choice["text"] for choice in scored["choices"]] == expected
    assert all(len(choice["logprobs"]["top_logprobs"]) == 12 for choice in scored["choices"])


def test_as_many_as_are_the_best_of_can_be_streamed(http: httpx.Client) -> None:
    sampled = {"prompt": "a", "seed": 3, "temperature": 2, "n": 2, "best_of": 2}
    whole = texts(http.post(PATH, json=sampled))
    streamed = completion_texts(chunks(http.post(PATH, json={**sampled, "stream": True})))
    assert [streamed[index] for index in range(2)] == whole


def test_a_model_that_cannot_fill_in_the_middle_says_so(http: httpx.Client) -> None:
    error = failed(http.post(PATH, json={"prompt": "a", "suffix": "b"}), 400, code="unsupported_parameter")
    assert "cannot fill in the middle" in error["message"]
    assert texts(http.post(PATH, json={"prompt": "a", "suffix": ""})) == texts(http.post(PATH, json={"prompt": "a"}))


@pytest.mark.parametrize("prompt", ["Grüße, 🚢!", "世界", list("Grüße".encode()), [0xC3, 0x28, 0xE4, 0xB8]])
def test_every_token_stands_where_its_text_begins(http: httpx.Client, prompt: Any) -> None:
    biased = {str(byte): 100 for byte in "é".encode()} | {"97": 99.5}
    request = {"prompt": prompt, "logprobs": 1, "echo": True, "logit_bias": biased, "seed": 5, "temperature": 2}
    [choice] = http.post(PATH, json=request).json()["choices"]
    logprobs, text = choice["logprobs"], choice["text"]
    length = len(prompt.encode() if isinstance(prompt, str) else prompt)
    assert len(logprobs["tokens"]) == length + 16
    offsets = logprobs["text_offset"]
    assert offsets == sorted(offsets) and offsets[0] >= 0 and offsets[-1] < len(text)
    for token, offset in zip(logprobs["tokens"], offsets, strict=True):
        assert token == "\ufffd" or text[offset:].lstrip("\ufffd").startswith(token)
    said: dict[str, list[Any]] = {name: [] for name in logprobs}
    for chunk in chunks(http.post(PATH, json={**request, "stream": True})):
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            said[name] += values
    assert said == logprobs


def test_every_token_of_an_echoed_prompt_has_its_entry_control_tokens_too(http: httpx.Client) -> None:
    request = {"logprobs": 0, "echo": True, "max_tokens": 0}
    for prompt, shown in (("a<|im_end|>b", "a<|im_end|>b"), ([97, 257, 98], "ab")):
        [choice] = http.post(PATH, json={"prompt": prompt, **request}).json()["choices"]
        assert choice["text"] == shown
        assert choice["logprobs"]["tokens"] == ["a", "<|im_end|>", "b"]
        assert choice["logprobs"]["text_offset"] == [0, 1, len(shown) - 1]
        assert [value is None for value in choice["logprobs"]["token_logprobs"]] == [True, False, False]


def test_a_prompts_log_probabilities_in_the_form_of_vllm(http: httpx.Client) -> None:
    answer = http.post(PATH, json={"prompt": ["hi", "ho"], "prompt_logprobs": 2, "max_tokens": 1, "n": 2}).json()
    for choice, second in zip(answer["choices"], "iioo", strict=True):
        first, other = choice["prompt_logprobs"]
        assert first is None and 2 <= len(other) <= 3
        assert other[str(ord(second))]["decoded_token"] == second
        assert all(entry["logprob"] <= 0 for entry in other.values())
        assert choice["logprobs"] is None


def test_token_ids_are_shown_on_request(http: httpx.Client) -> None:
    request = {"prompt": ["hi", "ho"], "return_token_ids": True}
    whole = http.post(PATH, json=request).json()["choices"]
    assert [choice["prompt_token_ids"] for choice in whole] == [[104, 105], [104, 111]]
    assert [bytes(choice["token_ids"]).decode() for choice in whole] == [choice["text"] for choice in whole]
    said: list[list[int]] = [[], []]
    prompts: list[list[int]] = [[], []]
    for chunk in chunks(http.post(PATH, json={**request, "stream": True})):
        [choice] = chunk["choices"]
        said[choice["index"]] += choice["token_ids"]
        prompts[choice["index"]] += choice.get("prompt_token_ids", [])
    assert said == [choice["token_ids"] for choice in whole]
    assert prompts == [choice["prompt_token_ids"] for choice in whole]


def test_a_stop_string_is_shown_on_request(http: httpx.Client) -> None:
    [usual] = texts(http.post(PATH, json={"prompt": "hi"}))
    stop = usual[4:7]
    end = usual.index(stop)
    request = {"prompt": "hi", "stop": stop}
    assert texts(http.post(PATH, json=request)) == [usual[:end]]
    assert texts(http.post(PATH, json={**request, "include_stop_str_in_output": True})) == [usual[: end + len(stop)]]


def test_control_tokens_show_on_request(http: httpx.Client) -> None:
    request = {"prompt": "hi", "logit_bias": {"256": 100}, "max_tokens": 2}
    assert texts(http.post(PATH, json=request)) == [""]
    assert texts(http.post(PATH, json={**request, "skip_special_tokens": False})) == ["<|im_start|>" * 2]


def test_control_tokens_of_a_prompt_of_tokens_show_on_request(http: httpx.Client) -> None:
    request = {"prompt": [256, 104, 105], "echo": True, "logprobs": 0, "max_tokens": 0}
    assert texts(http.post(PATH, json=request)) == ["hi"]
    response = http.post(PATH, json={**request, "skip_special_tokens": False})
    assert texts(response) == ["<|im_start|>hi"]
    assert response.json()["choices"][0]["logprobs"]["text_offset"] == [0, 12, 13]


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[0-9]{3}-[0-9]{2}"}}, "[0-9]{3}-[0-9]{2}"),
        ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
        ({"response_format": {"type": "json_object"}, "max_tokens": 200}, r"\{.*"),
    ],
)
def test_a_completion_can_be_held_to_a_form(http: httpx.Client, fields: Any, pattern: str) -> None:
    for answer in texts(http.post(PATH, json={"prompt": ["hi", "ho"], "seed": 1, **fields})):
        assert re.fullmatch(pattern, answer, re.DOTALL), answer


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(small_endpoint: Endpoint) -> None:
    with small_endpoint.http() as http:
        for prompt in ("x" * 60, list(b"x" * 60), ["a", "x" * 60]):
            error = failed(http.post(PATH, json={"prompt": prompt}), 400, code="context_length_exceeded")
            assert error["param"] == "prompt"
            assert all(number in error["message"] for number in ("64", "60", "16"))
        assert http.post(PATH, json={"prompt": "x" * 48}).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [259]}, "prompt"),
        ({"prompt": [2**31]}, "prompt[0]"),
        ({"prompt": None}, "prompt"),
        ({}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"prompt": "a", "n": 129}, "n"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2, "n": 3}, "best_of"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": "a", "best_of": 129}, "best_of"),
        ({"prompt": ["a"] * 65, "best_of": 2}, "prompt"),
        ({"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt": "a", "prompt_logprobs": 21}, "prompt_logprobs"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(http: httpx.Client, body: Any, param: str) -> None:
    failed(http.post(PATH, json=body), 400, param=param)


def test_the_openai_client_talks_to_it(simulated_endpoint: Endpoint) -> None:
    with OpenAI(base_url=f"{simulated_endpoint.url}/v1", api_key="none") as client:
        whole = client.completions.create(model="simulated", prompt=["a", "b"], max_tokens=20, n=2)
        parts: dict[int, str] = {}
        for chunk in client.completions.create(model="simulated", prompt=["a", "b"], max_tokens=20, n=2, stream=True):
            for choice in chunk.choices:
                parts[choice.index] = parts.get(choice.index, "") + choice.text
    assert parts == {choice.index: choice.text for choice in whole.choices}
