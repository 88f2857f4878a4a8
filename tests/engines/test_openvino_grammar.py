"""Grammars in the OpenVINO engine, with the bundled model and its own vocabulary."""

import json
import logging
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, validate

import chatfleet.engines.openvino.grammars as grammars_module
from chatfleet.chat.gguf import read_gguf
from chatfleet.chat.grammar import from_json_schema, remaining, to_ebnf
from chatfleet.chat.tokenizer import HuggingFaceTokenizer
from chatfleet.engines.base import RequestRefused
from chatfleet.engines.openvino.grammars import Grammars
from chatfleet.worker.model_source import bundled_model_path
from engines.openvino_models import Driver, load
from support.schemas import random_schema
from support.wire import PATIENCE_S

YES = 'root ::= "yes " [0-9]{3,5} " \\u00e9!" | "no"'
YES_TEXT = re.compile(r"yes [0-9]{3,5} é!|no")
WORD = "root ::= [a-z]+"
LONG_WORD = "root ::= [a-z]{40} [a-z]*"
WEIRD = {"temperature": 3.0}
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["red", "green"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 3}, "minItems": 2, "maxItems": 4},
        "name": {"type": "string", "pattern": "^[a-z]{2,9}$"},
    },
    "required": ["kind", "sizes", "name"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> HuggingFaceTokenizer:
    return read_gguf(Path(bundled_model_path())).tokenizer()


def token_bytes(tokenizer: HuggingFaceTokenizer) -> list[bytes]:
    return [b"" if tokenizer.is_special(i) else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]


def load_bundled(tokenizer: HuggingFaceTokenizer, **config: Any) -> Driver:
    config = {
        "deterministic": True,
        "kv_cache_gb": 0.2,
        "context_length": 1024,
        "token_bytes": token_bytes(tokenizer),
    } | config
    return load(Path(bundled_model_path()), **config)


@pytest.fixture(scope="module")
def driver(tokenizer: HuggingFaceTokenizer) -> Iterator[Driver]:
    driver = load_bundled(tokenizer)
    yield driver
    driver.backend.close()


class Answers:
    """Requests in text."""

    def __init__(self, driver: Driver, tokenizer: HuggingFaceTokenizer) -> None:
        self._driver, self._tokenizer = driver, tokenizer
        [self.eos] = tokenizer.eos_token_ids

    def add(self, grammar: str | None, begun: list[int] | None = None, **sampling: Any) -> int:
        prompt = self._tokenizer.encode("Tell me a story.", add_special_tokens=False)
        settings = {"max_tokens": 60, "stop_token_ids": (self.eos,), "grammar": grammar} | sampling
        return self._driver.add(prompt, begun, **settings)

    def text(self, request_id: int) -> str:
        ids = self._driver.tokens(request_id)
        return b"".join(self._tokenizer.token_bytes(i) for i in ids if not self._tokenizer.is_special(i)).decode()


@pytest.fixture
def answers(driver: Driver, tokenizer: HuggingFaceTokenizer) -> Answers:
    return Answers(driver, tokenizer)


def finish(driver: Driver) -> None:
    """Compiling is in threads, so steps may bring nothing."""
    deadline = time.monotonic() + PATIENCE_S
    while (wait_s := driver.backend.next_step_s()) is not None:
        assert time.monotonic() < deadline, "not done in time"
        time.sleep(wait_s)
        driver.step()


def test_the_engine_says_how_grammars_are_written(driver: Driver) -> None:
    assert driver.backend.capabilities.grammar_syntax == "ebnf"
    assert "grammar" in driver.backend.capabilities.parameters


@pytest.mark.parametrize(
    "config", [{"token_bytes": None}, {"prompt_lookup": True}], ids=["no vocabulary", "speculation"]
)
def test_without_the_vocabulary_or_with_speculation_there_are_no_grammars(
    tokenizer: HuggingFaceTokenizer, config: dict[str, Any]
) -> None:
    driver = load_bundled(tokenizer, **config)
    try:
        assert driver.backend.capabilities.grammar_syntax is None
        with pytest.raises(RequestRefused) as refused:
            driver.add([1, 2, 3], grammar=YES)
        assert refused.value.fault.param == "grammar"
    finally:
        driver.backend.close()


class TestText:
    @pytest.mark.parametrize(
        "sampling",
        [
            {},
            WEIRD | {"seed": 1},
            WEIRD | {"seed": 2, "top_k": 5},
            WEIRD | {"seed": 3, "top_p": 0.5},
            WEIRD | {"seed": 4, "min_p": 0.01},
            WEIRD | {"frequency_penalty": 2.0, "presence_penalty": 2.0},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("logprobs", [None, 0])
    def test_fits_the_grammar_however_it_is_drawn(
        self, driver: Driver, answers: Answers, sampling: dict[str, Any], logprobs: int | None
    ) -> None:
        request_id = answers.add(YES, logprobs=logprobs, **sampling)
        finish(driver)
        assert YES_TEXT.fullmatch(answers.text(request_id))
        assert driver.end(request_id) == "stop"
        assert driver.tokens(request_id)[-1] == answers.eos

    def test_is_the_models_own_where_the_grammar_allows_everything(self, driver: Driver, answers: Answers) -> None:
        free, held = (answers.add(grammar) for grammar in (None, "root ::= [^\\u0000]*"))
        finish(driver)
        assert driver.tokens(held) == driver.tokens(free)

    def test_is_cut_by_max_tokens(self, driver: Driver, answers: Answers) -> None:
        request_id = answers.add(LONG_WORD, max_tokens=3)
        finish(driver)
        assert driver.end(request_id) == "length"
        assert re.fullmatch("[a-z]+", answers.text(request_id))

    def test_of_neighbours_fits_their_own_grammars_or_none(self, driver: Driver, answers: Answers) -> None:
        alone = answers.add(None)
        finish(driver)
        kinds = (YES, None, WORD, 'root ::= "[" ([0-9]+ ", ")* "]"') * 4
        ids = [answers.add(kind, **({} if kind is None else WEIRD | {"seed": i})) for i, kind in enumerate(kinds)]
        finish(driver)
        patterns = {YES: YES_TEXT, WORD: re.compile("[a-z]+")}
        for request_id, kind in zip(ids, kinds, strict=True):
            if kind is None:
                assert driver.tokens(request_id) == driver.tokens(alone)
            elif driver.end(request_id) == "stop":
                assert patterns.get(kind, re.compile(r"\[([0-9]+, )*\]")).fullmatch(answers.text(request_id))
        assert "stop" in {driver.end(request_id) for request_id in ids}

    def test_behind_given_tokens_begins_with_the_grammar(
        self, driver: Driver, answers: Answers, tokenizer: HuggingFaceTokenizer
    ) -> None:
        begun = tokenizer.encode("yes 12", add_special_tokens=False)
        request_id = answers.add('root ::= [0-9]{1,3} " \\u00e9!"', begun, **WEIRD, seed=5)
        finish(driver)
        assert YES_TEXT.fullmatch("yes 12" + answers.text(request_id))

    @pytest.mark.long
    def test_of_a_schema_that_another_engine_has_begun_validates_as_a_whole(
        self, driver: Driver, answers: Answers, tokenizer: HuggingFaceTokenizer
    ) -> None:
        grammar = from_json_schema(SCHEMA, param="response_format")
        whole = answers.add(to_ebnf(grammar), max_tokens=200, temperature=1.5, seed=6)
        finish(driver)
        validate(json.loads(answers.text(whole)), SCHEMA)
        for cut in range(1, len(driver.tokens(whole)) - 1, 3):
            begun = driver.tokens(whole)[:cut]
            data = b"".join(map(tokenizer.token_bytes, begun))
            rest = answers.add(to_ebnf(remaining(grammar, data.decode())), begun, max_tokens=200, **WEIRD, seed=cut)
            finish(driver)
            if driver.end(rest) == "stop":
                validate(json.loads(data.decode() + answers.text(rest)), SCHEMA)

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "integer", "minimum": 58, "maximum": 2839},
            {"enum": ["bbab", "bbb", "a", "あ", "い", "aあ"]},
            {"type": "string", "pattern": "^([à-日]a|[日-龥]b)$"},
            {"type": "string", "minLength": 3, "maxLength": 70},
        ],
        ids=str,
    )
    def test_of_alternatives_that_begin_alike_is_one_of_them(
        self, driver: Driver, answers: Answers, schema: dict[str, Any]
    ) -> None:
        grammar = to_ebnf(from_json_schema(schema, param="response_format"))
        ids = [answers.add(grammar, **WEIRD, seed=seed) for seed in range(40)]
        finish(driver)
        texts = [answers.text(request_id) for request_id in ids if driver.end(request_id) == "stop"]
        assert texts
        for text in texts:
            validate(json.loads(text), schema)

    def test_ends_with_the_grammar_where_no_token_is_to_stop_it(self, driver: Driver, answers: Answers) -> None:
        request_id = answers.add(YES, stop_token_ids=(), logprobs=0)
        finish(driver)
        assert YES_TEXT.fullmatch(answers.text(request_id))
        assert driver.end(request_id) == "stop"
        assert answers.eos not in driver.tokens(request_id)
        logprobs = [entry.token_id for delta in driver.deltas[request_id] for entry in delta.logprobs or []]
        assert logprobs == driver.tokens(request_id)

    def test_may_come_with_log_probabilities_of_the_prompt(self, driver: Driver, answers: Answers) -> None:
        request_id = answers.add(YES, prompt_logprobs=True)
        finish(driver)
        assert YES_TEXT.fullmatch(answers.text(request_id))
        assert driver.deltas[request_id][0].prompt_logprobs


def test_log_probabilities_are_the_models_without_the_grammar(driver: Driver, answers: Answers) -> None:
    request_id = answers.add('root ::= "xyzzy"', logprobs=0)
    finish(driver)
    first = driver.deltas[request_id][0].logprobs
    assert first is not None
    assert first[0].logprob < math.log(0.05)  # 0.0 would be of what the grammar leaves


class TestWrongGrammars:
    @pytest.mark.parametrize("grammar", ["root ::= nosuch", "nonsense", 'root ::= "open', "", "root ::= [z-a]"])
    def test_are_refused_with_a_reason_and_their_neighbours_live(
        self, driver: Driver, answers: Answers, grammar: str
    ) -> None:
        before, wrong, after = answers.add(YES), answers.add(grammar), answers.add(None)
        finish(driver)
        [delta] = driver.deltas[wrong]
        assert delta.fault is not None
        assert delta.fault.kind == "invalid"
        assert re.fullmatch(r"The grammar cannot be compiled: EBNF \w+ error at line \d+.*\.", delta.fault.message)
        assert YES_TEXT.fullmatch(answers.text(before))
        assert driver.end(after) in ("stop", "length")

    def test_with_min_tokens_are_refused(self, driver: Driver, answers: Answers) -> None:
        with pytest.raises(RequestRefused) as refused:
            answers.add(YES, min_tokens=5)
        assert refused.value.fault.param == "min_tokens"


class TestCompiling:
    def test_leaves_the_neighbours_running(self, driver: Driver, answers: Answers) -> None:
        neighbour = answers.add(LONG_WORD, max_tokens=200)
        while not driver.deltas[neighbour]:
            driver.step()
        slow = answers.add('root ::= ["] [^"\\n]{0,77} ["] [^"\\n]{0,78} "!"', max_tokens=4)
        steps = 0
        while not driver.deltas[slow]:
            driver.step()
            steps += 1
            time.sleep(0.001)
        assert steps > 1, "the neighbour waited"
        finish(driver)
        assert driver.end(slow) == "length"

    def test_of_a_cancelled_request_ends_in_nothing(self, driver: Driver, answers: Answers) -> None:
        request_id = answers.add('root ::= ["] [^"\\n]{0,50} ["]')
        assert driver.backend.stats().waiting == 1
        driver.backend.cancel(request_id)
        assert driver.backend.next_step_s() is None
        finish(driver)
        assert not driver.deltas[request_id]

    def test_is_given_up_after_a_time(self, driver: Driver, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(grammars_module, "COMPILE_TIMEOUT_S", -1.0)
        request_id = answers.add('root ::= ["] [^"\\n]{0,60} ["]')
        finish(driver)
        fault = driver.deltas[request_id][-1].fault
        assert fault is not None
        assert fault.kind == "invalid"
        assert "not compiled within" in fault.message
        monkeypatch.undo()
        again = answers.add('root ::= ["] [^"\\n]{0,60} ["]', max_tokens=3)
        finish(driver)
        assert driver.end(again) in ("stop", "length")

    @pytest.mark.long
    def test_frees_its_memory_when_much_is_taken_and_nothing_runs(
        self, driver: Driver, answers: Answers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(grammars_module, "MEMORY_BYTES", 1_200_000)
        with caplog.at_level(logging.INFO):
            for number in range(6):
                ids = [answers.add(f'root ::= "{number}" [a-z]{{{end}}} [^"]{{0,40}}') for end in (3, 4)]
                finish(driver)
                assert [re.match("[0-9][a-z]{3}", answers.text(i)) is not None for i in ids] == [True, True]
        assert "loading the model anew" in caplog.text


def test_tokens_beyond_those_with_text_are_never_said() -> None:
    grammars = Grammars([b"a", b"b"], 300)
    deadline = time.monotonic() + PATIENCE_S
    while not grammars.ready("root ::= [a-b]*"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert grammars.end_token_id == 299
    grammars.close()


class TestRecovery:
    @pytest.mark.long
    def test_grammars_work_after_the_engine_has_failed(self, tokenizer: HuggingFaceTokenizer) -> None:
        driver = load_bundled(tokenizer)
        try:
            answers = Answers(driver, tokenizer)
            answers.add(YES)
            driver.backend.recover()
            assert driver.backend.next_step_s() is None
            request_id = answers.add(YES)
            finish(driver)
            assert YES_TEXT.fullmatch(answers.text(request_id))
        finally:
            driver.backend.close()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_finished_answers_to_random_schemas_validate(driver: Driver, answers: Answers) -> None:
    schemas = [random_schema(seed) for seed in range(500)]
    finished = 0
    for start in range(0, len(schemas), 25):
        some = schemas[start : start + 25]
        grammars = [to_ebnf(from_json_schema(schema, param="response_format")) for schema in some]
        ids = [
            answers.add(grammar, max_tokens=150, temperature=1.5, seed=start + i) for i, grammar in enumerate(grammars)
        ]
        finish(driver)
        for request_id, schema in zip(ids, some, strict=True):
            if driver.end(request_id) != "length":
                assert driver.end(request_id) == "stop", schema
                value = json.loads(answers.text(request_id))
                validate(value, schema, cls=Draft202012Validator, format_checker=Draft202012Validator.FORMAT_CHECKER)
                finished += 1
    assert finished > len(schemas) / 2
