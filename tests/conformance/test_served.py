"""What clients of a worker see, for every engine: text, usage, log probabilities, and refusals over HTTP."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from chatfleet.chat.tokenizer import Tokenizer
from conformance.targets import CONTEXT_LENGTH, Loadable, chat_prompt
from support.processes import WorkerProcess
from support.wire import Json, chat_texts, chunks, completion_texts, error_object, user

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
QUESTION = "What is ChatFleet?"
REPEAT = "Repeat: grüße 🚢 你好 ñandú"
EMOJI = "Say hello to grüße 🚢 👨‍👩‍👧‍👦 你好 🇫🇷."


class Client:
    """A worker's API. `refused` is what it has refused in the case that runs."""

    def __init__(self, http: httpx.Client, tokenizer: Tokenizer, refused: list[str]) -> None:
        self.http = http
        self.tokenizer = tokenizer
        self._refused = refused

    def post(self, path: str, **fields: Any) -> Json:
        """An answer that goes well; greedy unless `fields` say otherwise."""
        response = self.http.post(path, json={"temperature": 0, **fields})
        assert response.status_code == 200, response.text
        assert "x-chatfleet-ignored" not in response.headers
        answer: Json = response.json()
        return answer

    def stream(self, path: str, **fields: Any) -> list[Json]:
        """The chunks of a stream that goes well."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return chunks(self.http.post(path, json={"temperature": 0, **options, **fields}))

    def takes(self, path: str, param: str, **fields: Any) -> bool:
        """Whether it takes a request; a refusal names `param` and goes to the report."""
        response = self.http.post(path, json={"temperature": 0, "max_tokens": 1, **fields})
        if response.status_code == 200:
            assert "x-chatfleet-ignored" not in response.headers
            return True
        error = error_object(response.content)
        assert response.status_code == 400 and error["param"] == param and error["code"] == "unsupported_parameter"
        self._refused.append(error["message"])
        return False

    def count(self, **fields: Any) -> int:
        """Tokens of a prompt or of messages."""
        return int(self.http.post("/v1/tokenize", json=fields).json()["count"])

    def tokens(self, prompt: str) -> list[int]:
        found: list[int] = self.http.post("/v1/tokenize", json={"prompt": prompt}).json()["tokens"]
        return found


@pytest.fixture(scope="module")
def worker(loadable: Loadable) -> Iterator[WorkerProcess]:
    with WorkerProcess(*loadable.arguments(), ready_s=120.0) as process:
        yield process


@pytest.fixture(scope="module")
def tokenizer(loadable: Loadable) -> Tokenizer:
    return loadable.target.tokenizer()


@pytest.fixture
def client(refused: list[str], worker: WorkerProcess, tokenizer: Tokenizer) -> Iterator[Client]:
    with worker.http() as http:
        yield Client(http, tokenizer, refused)
        assert http.get("/ready").status_code == 200


def wild(client: Client) -> list[Json]:
    """Requests whose answers have characters of several tokens, whole and cut short. Each is its own random text."""
    requests: list[Json] = [{"prompt": chat_prompt(REPEAT), "temperature": 1.8, "seed": seed} for seed in range(6)]
    # The simulated engine would write ASCII alone.
    spread = {str(token_id): 12 for token_id in client.tokens("🚢é")}
    biased = client.http.post(COMPLETIONS, json={"prompt": QUESTION, "logit_bias": spread})
    if biased.status_code == 200:
        requests += [{**request, "logit_bias": spread} for request in requests]
    return [{**request, "max_tokens": 30, "ignore_eos": True} for request in requests]


# --- text ---


@pytest.mark.long
def test_streams_never_split_a_character_and_are_the_whole_text(client: Client) -> None:
    beyond_ascii = 0
    for request in wild(client):
        whole = client.post(COMPLETIONS, **request)["choices"][0]["text"]
        parts = client.stream(COMPLETIONS, **request)
        assert completion_texts(parts)[0] == whole
        beyond_ascii += not whole.isascii()
    assert beyond_ascii >= 3


def test_an_echo_is_the_prompt_to_the_byte(client: Client) -> None:
    whole = client.post(COMPLETIONS, prompt=EMOJI, max_tokens=4, echo=True)["choices"][0]["text"]
    assert whole.startswith(EMOJI)
    streamed = client.stream(COMPLETIONS, prompt=client.tokens(EMOJI), max_tokens=4, echo=True)
    assert completion_texts(streamed)[0] == whole


def test_an_emoji_prompt_is_counted_and_answered(client: Client) -> None:
    answer = client.post(CHAT, messages=user(EMOJI), max_tokens=30)
    assert answer["usage"]["prompt_tokens"] == client.count(messages=user(EMOJI))
    assert (
        chat_texts(client.stream(CHAT, messages=user(EMOJI), max_tokens=30))[0]
        == (answer["choices"][0]["message"]["content"])
    )
    back = client.http.post("/v1/detokenize", json={"tokens": client.tokens(EMOJI)}).json()
    assert back["prompt"] == EMOJI


# --- stops ---


def test_a_stop_string_over_several_tokens_ends_the_text_before_it(client: Client) -> None:
    fields = {"messages": user(QUESTION), "max_tokens": 60, "logprobs": True}
    choice = client.post(CHAT, **fields)["choices"][0]
    text, tokens = choice["message"]["content"], [entry["token"] for entry in choice["logprobs"]["content"]]
    for at in (4, 11, 20):
        stop = "".join(tokens[at : at + 3])[: len(tokens[at] + tokens[at + 1]) + 1]
        place = text.index(stop)
        used = next(n for n in range(len(tokens)) if "".join(tokens[: n + 1]).find(stop) >= 0) + 1
        ended = client.post(CHAT, **fields, stop=["never comes", stop])
        assert ended["choices"][0]["message"]["content"] == text[:place]
        assert ended["choices"][0]["finish_reason"] == "stop"
        assert ended["usage"]["completion_tokens"] == used
        shown = "".join(entry["token"] for entry in ended["choices"][0]["logprobs"]["content"])
        assert text[:place].startswith(shown), "no log probabilities of what is not shown whole"
        parts = client.stream(CHAT, **fields, stop=stop)
        assert chat_texts(parts)[0] == text[:place] and parts[-1]["usage"]["completion_tokens"] == used


def test_the_end_token_counts_and_does_not_show(client: Client) -> None:
    answer = client.post(CHAT, messages=user(QUESTION), logprobs=True)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop" and "<|im_end|>" not in choice["message"]["content"]
    assert answer["usage"]["completion_tokens"] == len(choice["logprobs"]["content"]) + 1
    count = answer["usage"]["completion_tokens"] + 30
    longer = client.post(CHAT, messages=user(QUESTION), ignore_eos=True, max_tokens=count)
    assert longer["usage"]["completion_tokens"] == count and longer["choices"][0]["finish_reason"] == "length"
    assert longer["choices"][0]["message"]["content"].startswith(choice["message"]["content"])


def test_a_stop_token_id_counts_and_does_not_show(client: Client) -> None:
    usual = client.post(CHAT, messages=user(QUESTION), max_tokens=30, logprobs=True)["choices"][0]
    entries = usual["logprobs"]["content"]
    at = next(i for i, entry in enumerate(entries) if i > 8 and entry["bytes"] not in [e["bytes"] for e in entries[:i]])
    (token_id,) = [
        i for i in range(client.tokenizer.vocab_size) if client.tokenizer.token_bytes(i) == bytes(entries[at]["bytes"])
    ]
    answer = client.post(CHAT, messages=user(QUESTION), max_tokens=30, stop_token_ids=[token_id])
    assert answer["choices"][0]["message"]["content"] == "".join(entry["token"] for entry in entries[:at])
    assert answer["usage"]["completion_tokens"] == at + 1 and answer["choices"][0]["finish_reason"] == "stop"


def test_min_tokens_keeps_an_answer_going(client: Client) -> None:
    if not client.takes(CHAT, "min_tokens", messages=user(QUESTION), min_tokens=1):
        return
    usual = client.post(CHAT, messages=user(QUESTION))["usage"]["completion_tokens"]
    longer = client.post(CHAT, messages=user(QUESTION), min_tokens=usual + 10, max_tokens=usual + 30)
    assert longer["usage"]["completion_tokens"] > usual + 10


# --- usage ---


def test_usage_is_what_the_tokenizer_counts(client: Client) -> None:
    for max_tokens in (1, 2, 700):
        fields: Json = {"messages": user(QUESTION), "max_tokens": max_tokens, "logprobs": True}
        answer = client.post(CHAT, **fields)
        (choice,), usage = answer["choices"], answer["usage"]
        ended = choice["finish_reason"] == "stop"
        assert usage["prompt_tokens"] == client.count(messages=user(QUESTION))
        assert usage["completion_tokens"] == len(choice["logprobs"]["content"]) + ended
        assert usage["completion_tokens"] <= max_tokens and ended == (max_tokens == 700)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        streamed = client.stream(CHAT, **fields)[-1]["usage"]
        assert {**streamed, "prompt_tokens_details": None} == {**usage, "prompt_tokens_details": None}
    answer = client.post(COMPLETIONS, prompt=EMOJI, max_tokens=3)
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (client.count(prompt=EMOJI), 3)


def test_an_empty_prompt_is_one_token(client: Client) -> None:
    answer = client.post(COMPLETIONS, prompt="", max_tokens=3, ignore_eos=True)
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (1, 3)


def test_the_context_can_be_used_to_its_last_token(client: Client) -> None:
    prompt = (client.tokens("one two three four five six seven ") * CONTEXT_LENGTH)[: CONTEXT_LENGTH - 1]
    for length, left in ((CONTEXT_LENGTH - 1, 1), (CONTEXT_LENGTH - 40, 40)):
        fields: Json = {"prompt": prompt[:length], "ignore_eos": True}
        usage = client.post(COMPLETIONS, **fields, max_tokens=left)["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (length, left)
        refusal = client.http.post(COMPLETIONS, json={**fields, "max_tokens": left + 1})
        assert refusal.status_code == 400
        assert error_object(refusal.content)["code"] == "context_length_exceeded"


# --- choices ---


def test_choices_differ_by_seed_and_repeat(client: Client) -> None:
    fields: Json = {"messages": user("Tell me a story."), "n": 4, "seed": 5, "temperature": 2, "max_tokens": 30}
    first, second = client.post(CHAT, **fields), client.post(CHAT, **fields)
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2, 3] and len(set(texts)) == 4
    assert texts == [choice["message"]["content"] for choice in second["choices"]]
    assert chat_texts(client.stream(CHAT, **fields)) == dict(enumerate(texts))
    alone = client.post(CHAT, **{**fields, "n": 1})
    assert alone["choices"][0]["message"]["content"] == texts[0]
    assert first["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]


# --- log probabilities ---


def test_bytes_of_log_probabilities_are_the_text(client: Client) -> None:
    seen = 0
    for seed in range(4):
        fields: Json = {"messages": user(QUESTION), "temperature": 2, "seed": seed, "max_tokens": 40, "logprobs": True}
        (choice,) = client.post(CHAT, **fields)["choices"]
        entries = choice["logprobs"]["content"]
        data = b"".join(bytes(entry["bytes"]) for entry in entries)
        assert data.decode("utf-8", "replace") == choice["message"]["content"]
        assert all(bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"] for entry in entries)
        assert all(entry["logprob"] <= 1e-6 and entry["top_logprobs"] == [] for entry in entries)
        streamed = [
            entry
            for chunk in client.stream(CHAT, **fields)
            for part in chunk["choices"]
            for entry in (part["logprobs"] or {"content": []})["content"]
        ]
        assert [entry["bytes"] for entry in streamed] == [entry["bytes"] for entry in entries]
        seen += len(entries)
    assert seen > 60


def test_the_likeliest_tokens_stand_beside_the_chosen_one(client: Client) -> None:
    fields: Json = {"messages": user(QUESTION), "logprobs": True, "top_logprobs": 5}
    if not client.takes(CHAT, "top_logprobs", **fields):
        return
    (choice,) = client.post(CHAT, **fields, max_tokens=20)["choices"]
    for entry in choice["logprobs"]["content"]:
        best = entry["top_logprobs"][0]
        assert (best["bytes"], best["logprob"]) == (entry["bytes"], entry["logprob"])
        assert len(entry["top_logprobs"]) == 5
        values = [other["logprob"] for other in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_echo_scores_the_prompt(client: Client, max_tokens: int) -> None:
    prompt = "The capital of France is Paris. Grüße 🚢"
    fields: Json = {"prompt": prompt, "echo": True, "logprobs": 0}
    if not client.takes(COMPLETIONS, "echo", **fields):
        return
    answers = [client.post(COMPLETIONS, **fields, max_tokens=max_tokens, ignore_eos=True) for _ in range(2)]
    for answer in answers:
        (choice,) = answer["choices"]
        logprobs = choice["logprobs"]
        assert answer["usage"]["completion_tokens"] == max_tokens
        shown = len(logprobs["tokens"]) - client.count(prompt=prompt)
        assert 0 <= shown <= max_tokens, "control tokens do not show"
        assert choice["text"].startswith(prompt)
        assert logprobs["token_logprobs"][0] is None
        assert all(value <= 1e-6 for value in logprobs["token_logprobs"][1:])
    first, second = [answer["choices"][0]["logprobs"]["token_logprobs"][1:] for answer in answers]
    assert first == pytest.approx(second, abs=1e-3)


# --- what is not wanted ---


def test_a_bad_word_does_not_come(client: Client) -> None:
    text = client.post(CHAT, messages=user(QUESTION), max_tokens=60)["choices"][0]["message"]["content"]
    word = next(word for word in text.split()[2:] if word.isalpha() and len(word) > 3)
    if not client.takes(CHAT, "bad_words", messages=user(QUESTION), bad_words=[word]):
        return
    answer = client.post(CHAT, messages=user(QUESTION), max_tokens=60, bad_words=[word])
    other = answer["choices"][0]["message"]["content"]
    assert other.split()[0] == text.split()[0] and word not in other.split()
