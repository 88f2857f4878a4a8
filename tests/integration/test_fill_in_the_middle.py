"""A model with tokens for it is asked for the text between two others."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.models import write_safetensors
from support.processes import WorkerProcess
from support.wire import Json, chunks, completion_texts, failed

pytestmark = pytest.mark.long

PATH = "/v1/completions"
NAMES = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")


def renamed(tokenizer: Json) -> list[int]:
    """Make tokens for it of the last ones of the vocabulary, which no other is made of. Their ids."""
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    control = {token["id"] for token in tokenizer["added_tokens"]}
    last = sorted((i, token) for token, i in vocabulary.items() if i not in control)[-len(NAMES) :]
    del merges[-len(NAMES) :]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for (token_id, token), name in zip(last, NAMES, strict=True):
        del vocabulary[token]
        vocabulary[name] = token_id
        tokenizer["added_tokens"].append({"id": token_id, "content": name, **plain})
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    return [token_id for token_id, _ in last]


@pytest.fixture(scope="module")
def filling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, list[int]]]:
    """A worker whose model has tokens for it, and their ids."""
    folder: Path = write_safetensors(tmp_path_factory.mktemp("models") / "filling")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    token_ids = renamed(tokenizer)
    path.write_text(json.dumps(tokenizer))
    with WorkerProcess(str(folder), "--engine", "transformers", "--deterministic") as worker, worker.http() as http:
        yield http, token_ids


def test_the_prompt_has_both_sides_and_asks_for_what_lies_between(filling: Any) -> None:
    http, (before, behind, middle) = filling
    request = {"prompt": "def add(a, b):\n    return", "suffix": "\n\nprint(add(1, 2))", "max_tokens": 8}
    answer = http.post(PATH, json={**request, "return_token_ids": True, "temperature": 0}).json()
    parts = [
        http.post("/v1/tokenize", json={"prompt": text}).json()["tokens"]
        for text in (request["prompt"], request["suffix"])
    ]
    [choice] = answer["choices"]
    assert choice["prompt_token_ids"] == [before, *parts[0], behind, *parts[1], middle]
    assert answer["usage"]["prompt_tokens"] == len(choice["prompt_token_ids"])
    streamed = completion_texts(chunks(http.post(PATH, json={**request, "temperature": 0, "stream": True})))
    assert streamed == {0: choice["text"]}


def test_a_token_of_the_format_ends_the_middle(filling: Any) -> None:
    http, (_, behind, _) = filling
    request = {"prompt": "a", "suffix": "b", "logit_bias": {str(behind): 100}, "max_tokens": 8}
    [choice] = http.post(PATH, json=request).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")


def test_prompts_of_token_ids_and_several_at_once_are_filled_in_too(filling: Any) -> None:
    http, (before, behind, middle) = filling
    answer = http.post(
        PATH, json={"prompt": [[5, 6], [7]], "suffix": "a", "max_tokens": 1, "return_token_ids": True}
    ).json()
    [suffix] = http.post("/v1/tokenize", json={"prompt": "a"}).json()["tokens"]
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [
        [before, 5, 6, behind, suffix, middle],
        [before, 7, behind, suffix, middle],
    ]


@pytest.mark.parametrize(
    "fields", [{"echo": True}, {"suffix": "b" * 100_000}, {"suffix": "b" * 10_000_000}], ids=["echo", "long", "huge"]
)
def test_what_does_not_go_together_or_does_not_fit_is_refused(filling: Any, fields: Json) -> None:
    http, _ = filling
    failed(http.post(PATH, json={"prompt": "a", "suffix": "b", **fields}), 400)
