"""/v1/completions, whole answers."""

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
    assert together.json()["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 64,
        "total_tokens": 66,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
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
        ({"prompt": "a", "best_of": 2}, "best_of"),
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
