"""Log probabilities of a prompt, by the bundled model: what evaluations ask for."""

import math
from collections.abc import Iterator

import httpx
import pytest

from support.processes import WorkerProcess

PATH = "/v1/completions"
PROMPT = "The capital of France is Paris. The capital of Italy is"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with WorkerProcess("--deterministic") as worker, worker.http() as client:
        yield client


def ask(http: httpx.Client, **fields: object) -> dict[str, object]:
    response = http.post(
        PATH, json={"prompt": PROMPT, "echo": True, "logprobs": 0, "temperature": 0, "ignore_eos": True} | fields
    )
    assert response.status_code == 200, response.text
    answer: dict[str, object] = response.json()
    return answer


def test_every_token_of_the_prompt_has_one_with_the_prefix_cached_and_without(http: httpx.Client) -> None:
    told = []
    for _ in range(2):
        answer = ask(http, max_tokens=0)
        [choice] = answer["choices"]  # type: ignore[misc]
        logprobs = choice["logprobs"]
        assert choice["text"] == "".join(logprobs["tokens"]) == PROMPT
        assert choice["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 0  # type: ignore[index]
        first, *values = logprobs["token_logprobs"]
        assert first is None and len(values) > 5
        assert all(-30 < value <= 0 for value in values)
        assert logprobs["text_offset"] == [sum(map(len, logprobs["tokens"][:i])) for i in range(len(values) + 1)]
        told.append(values)
        ask(http, max_tokens=1, echo=False)
    assert told[0] == told[1]


def test_the_answers_tokens_follow_the_prompts(http: httpx.Client) -> None:
    [alone] = ask(http, max_tokens=0)["choices"]  # type: ignore[misc]
    answer = ask(http, max_tokens=2)
    [choice] = answer["choices"]  # type: ignore[misc]
    count = len(alone["logprobs"]["tokens"])
    assert choice["text"].startswith(PROMPT)
    assert choice["logprobs"]["token_logprobs"][:count] == alone["logprobs"]["token_logprobs"]
    assert len(choice["logprobs"]["token_logprobs"]) == count + 2
    assert answer["usage"]["completion_tokens"] == 2  # type: ignore[index]


def test_an_answer_read_back_as_a_prompt_has_the_log_probabilities_it_was_given_with(http: httpx.Client) -> None:
    [answer] = ask(http, echo=False, max_tokens=3)["choices"]  # type: ignore[misc]
    [back] = ask(http, prompt=PROMPT + answer["text"], max_tokens=0)["choices"]  # type: ignore[misc]
    values = back["logprobs"]["token_logprobs"][-3:]
    assert back["logprobs"]["tokens"][-3:] == answer["logprobs"]["tokens"]
    assert values == pytest.approx(answer["logprobs"]["token_logprobs"], abs=1e-3)
    assert math.isclose(sum(values), sum(answer["logprobs"]["token_logprobs"]), abs_tol=1e-2)


def test_choices_and_prompts_each_have_their_own(http: httpx.Client) -> None:
    answer = ask(http, prompt=[PROMPT, "Two and two is four."], n=2, max_tokens=1, temperature=1, seed=1)
    choices: list[dict[str, dict[str, list[float]]]] = answer["choices"]  # type: ignore[assignment]
    values = [choice["logprobs"]["token_logprobs"][1:-1] for choice in choices]
    assert values[0] == values[1] != values[2] == values[3]


def test_it_streams(http: httpx.Client) -> None:
    fields = {"prompt": PROMPT, "echo": True, "logprobs": 0, "temperature": 0, "max_tokens": 3}
    response = http.post(PATH, json=fields | {"stream": True, "ignore_eos": True})
    assert response.status_code == 200
    assert response.text.count("token_logprobs") >= 2 and response.text.rstrip().endswith("data: [DONE]")


def test_what_the_engine_has_nothing_for_is_refused_by_name(http: httpx.Client) -> None:
    refused = {"logprobs": 3, "bad_words": ["Rome"], "bad_words_ids": [[5]], "logit_bias": {"5": 1}}
    for name, value in refused.items():
        response = http.post(PATH, json={"prompt": "hi", name: value})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == name


def test_an_answer_is_as_long_as_its_least(http: httpx.Client) -> None:
    question = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    usual = http.post("/v1/chat/completions", json=question).json()["usage"]["completion_tokens"]
    longer = http.post("/v1/chat/completions", json=question | {"min_tokens": usual + 10, "max_tokens": 200})
    assert usual + 10 < longer.json()["usage"]["completion_tokens"] <= 200
