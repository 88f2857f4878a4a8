"""Tokens that a draft model or prompt lookup proposes: the answers are those of the model alone."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chatfleet.engines.openvino.backend as backend_module
from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import RequestRefused
from chatfleet.worker.model_source import bundled_model_path
from engines.openvino_models import TINY, Driver, Reference, load, prompts, writer

pytestmark = pytest.mark.long

REPEATED = [5, 9, 100, 42, 17, 300] * 5
KINDS = ("a draft that agrees", "a draft that does not", "prompt lookup")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models")
    writer.write_model(folder / "tiny.gguf", TINY)
    writer.write_model(folder / "other.gguf", replace(TINY, seed=1, layers=1))
    return folder


@pytest.fixture(scope="module")
def alone(models: Path) -> Iterator[Driver]:
    driver = load(models / "tiny.gguf", deterministic=True)
    yield driver
    driver.backend.close()


def speculating(models: Path, kind: str, **config: Any) -> Driver:
    how: dict[str, Any] = {
        "a draft that agrees": {"draft_model_path": str(models / "tiny.gguf")},
        "a draft that does not": {"draft_model_path": str(models / "other.gguf")},
        "prompt lookup": {"prompt_lookup": True},
    }[kind]
    return load(models / "tiny.gguf", **{"deterministic": True} | how | config)


@pytest.fixture(scope="module", params=KINDS)
def driver(models: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    driver = speculating(models, request.param)
    yield driver
    driver.backend.close()


class TestAnswers:
    @pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 60])
    def test_greedy_tokens_and_log_probabilities_are_those_of_the_model_alone(
        self, driver: Driver, alone: Driver, max_tokens: int
    ) -> None:
        results = []
        for each in (driver, alone):
            ids = [each.add(prompt, max_tokens=max_tokens, logprobs=0) for prompt in (REPEATED, *prompts(3, 70))]
            each.finish()
            results.append([each.tokens(request_id) for request_id in ids])
            assert [each.end(request_id) for request_id in ids] == ["length"] * 4
            values = [entry.logprob for i in ids for delta in each.deltas[i] for entry in delta.logprobs or []]
            results.append(values)
        assert results[0] == results[2]
        assert results[1] == pytest.approx(results[3], abs=1e-3)

    def test_a_stop_token_among_accepted_ones_is_the_last(self, driver: Driver, alone: Driver) -> None:
        whole = alone.generate(REPEATED, max_tokens=40)
        for at in range(1, 12):
            stop = whole[at]
            request_id = driver.add(REPEATED, max_tokens=40, stop_token_ids=(stop,), logprobs=0)
            driver.finish()
            assert driver.tokens(request_id) == whole[: whole.index(stop) + 1]
            assert driver.end(request_id) == "stop"

    @pytest.mark.parametrize(
        "sampling",
        [
            {"seed": 7, "temperature": 2.0},
            {"seed": 7, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.01},
            {"frequency_penalty": 1.5, "presence_penalty": 0.5},
            {"seed": 3, "temperature": 1.0, "frequency_penalty": 1.5},
        ],
    )
    def test_settings_and_seeds_do_what_they_do_alone(
        self, driver: Driver, alone: Driver, sampling: dict[str, Any]
    ) -> None:
        expected = [alone.generate(prompt, max_tokens=40, **sampling) for prompt in (REPEATED, [1, 2, 3])]
        ids = [driver.add(prompt, max_tokens=40, **sampling) for prompt in (REPEATED, [1, 2, 3])]
        driver.finish()
        assert [driver.tokens(request_id) for request_id in ids] == expected

    def test_drawn_tokens_have_the_models_distribution(self, driver: Driver, models: Path) -> None:
        reference = Reference(models / "tiny.gguf", TINY)
        ids = [driver.add([8, 9, 8], max_tokens=3, temperature=1.0, seed=seed) for seed in range(400)]
        driver.finish()
        answers = [tuple(driver.tokens(request_id)) for request_id in ids]
        first = Counter(answer[0] for answer in answers)
        probabilities = np.exp(reference.log_probabilities([8, 9, 8]))
        for token_id in np.argsort(-probabilities)[:5]:
            expected = 400 * float(probabilities[token_id])
            assert abs(first[int(token_id)] - expected) < 4.5 * math.sqrt(expected) + 1
        [(begun, count)] = first.most_common(1)
        second = Counter(answer[1] for answer in answers if answer[0] == begun)
        probabilities = np.exp(reference.log_probabilities([8, 9, 8, begun]))
        for token_id in np.argsort(-probabilities)[:3]:
            expected = count * float(probabilities[token_id])
            assert abs(second[int(token_id)] - expected) < 4.5 * math.sqrt(expected) + 1

    def test_an_answer_that_another_engine_has_begun_goes_on(self, driver: Driver, alone: Driver) -> None:
        for sampling in ({}, {"seed": 7, "temperature": 2.0}, {"frequency_penalty": 1.0}):
            whole = alone.generate(REPEATED, max_tokens=40, **sampling)
            for cut in (1, 17, 39):
                assert driver.generate(REPEATED, whole[:cut], max_tokens=40, **sampling) == whole[cut:]

    def test_a_whole_context_can_be_used(self, driver: Driver, alone: Driver) -> None:
        prompt = prompts(1, 1000)[0]
        assert driver.generate(prompt, max_tokens=24) == alone.generate(prompt, max_tokens=24)


class TestCrowds:
    def test_neighbours_change_nothing(self, driver: Driver, alone: Driver) -> None:
        wanted = [alone.generate(prompt, max_tokens=30) for prompt in prompts(20, 40, seed=3)]
        ids = []
        for prompt in prompts(20, 40, seed=3):
            ids.append(driver.add(prompt, max_tokens=30))
            driver.step()
        driver.finish()
        assert [driver.tokens(request_id) for request_id in ids] == wanted

    def test_cancelled_ones_leave_the_others_alone(self, driver: Driver, alone: Driver) -> None:
        texts = prompts(12, 50, seed=4)
        ids = []
        for index, prompt in enumerate(texts):
            ids.append(driver.add(prompt, max_tokens=30))
            driver.step()
            if index % 3 == 2:
                driver.backend.cancel(ids[-2])
        driver.finish()
        for index, prompt in enumerate(texts):
            if index % 3 != 1:
                assert driver.tokens(ids[index]) == alone.generate(prompt, max_tokens=30)
        assert driver.backend.stats().running == 0
        driver.generate([1], max_tokens=1)
        assert driver.backend._pipeline.get_metrics().cache_usage < 10

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("tokens_a_step", [32, 256])
    def test_prompts_of_any_length_may_come_at_any_time(
        self, models: Path, alone: Driver, monkeypatch: pytest.MonkeyPatch, kind: str, tokens_a_step: int
    ) -> None:
        monkeypatch.setattr(backend_module, "step_tokens", lambda **_: tokens_a_step)
        monkeypatch.setattr(backend_module, "WHOLE_PROMPT_TOKENS", 300)
        driver = speculating(models, kind)
        rng = np.random.default_rng(tokens_a_step)
        wanted: dict[int, tuple[list[int], int]] = {}
        prompt: list[int] = []
        for _ in range(40):
            # Some share a beginning with the one before: what the prefix cache holds is not read again.
            prompt = prompt[: rng.integers(len(prompt) + 1)] + rng.integers(0, 500, rng.integers(1, 400)).tolist()
            prompt = prompt[-900:]
            max_tokens = int(rng.integers(1, 40))
            request_id = driver.add(prompt, max_tokens=max_tokens)
            wanted[request_id] = (prompt, max_tokens)
            for _ in range(rng.integers(6)):
                driver.step()
            if rng.random() < 0.2:
                victim = int(rng.choice(list(wanted)))
                driver.backend.cancel(victim)
                del wanted[victim]
        driver.finish()
        for request_id, (text, max_tokens) in wanted.items():
            assert driver.tokens(request_id) == alone.generate(text, max_tokens=max_tokens)
        driver.backend.close()

    @pytest.mark.parametrize("kind", KINDS)
    def test_more_than_fits_the_memory_is_answered_all_the_same(self, models: Path, alone: Driver, kind: str) -> None:
        per_block = 2 * 2 * 2 * 16 * 4 * 32 * {KINDS[0]: 2, KINDS[1]: 1.501, KINDS[2]: 1}[kind]
        driver = speculating(models, kind, kv_cache_gb=40 * per_block / 1e9, context_length=512)
        assert driver.backend._pool.blocks == 40
        texts = prompts(12, 200, seed=5)
        ids = [driver.add(prompt, max_tokens=150) for prompt in texts]
        driver.finish()
        for request_id, prompt in zip(ids, texts, strict=True):
            assert driver.end(request_id) == "length"
            assert driver.tokens(request_id) == alone.generate(prompt, max_tokens=150)
        driver.backend.close()


class TestGain:
    @pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]])
    def test_several_tokens_come_of_one_step(self, kind: str) -> None:
        path = bundled_model_path()
        how: dict[str, Any] = {"draft_model_path": str(path)} if kind == KINDS[0] else {"prompt_lookup": True}
        driver = load(path, deterministic=True, num_assistant_tokens=3, **how)
        request_id = driver.add([5, 9, 100, 42] * 10, max_tokens=60)
        driver.finish()
        sizes = [len(delta.token_ids) for delta in driver.deltas[request_id]]
        assert sum(sizes) == 60 and max(sizes) == 4 and len(sizes) < 45
        driver.backend.close()


class TestSettings:
    def test_min_tokens_is_refused_by_name(self, driver: Driver) -> None:
        with pytest.raises(RequestRefused) as refused:
            driver.add(REPEATED, min_tokens=3)
        assert refused.value.fault.param == "min_tokens"


class TestLoading:
    def test_both_at_once_are_refused(self, models: Path) -> None:
        with pytest.raises(ConfigurationError, match="Leave out --draft-model or --prompt-lookup"):
            speculating(models, "prompt lookup", draft_model_path=str(models / "tiny.gguf"))

    @pytest.mark.parametrize("number", [0, 17])
    def test_the_number_of_proposed_tokens_is_bounded(self, models: Path, number: int) -> None:
        with pytest.raises(ConfigurationError, match="from 1 to 16"):
            speculating(models, "prompt lookup", num_assistant_tokens=number)

    def test_a_draft_of_another_vocabulary_is_refused(self, models: Path, tmp_path: Path) -> None:
        path = writer.write_model(tmp_path / "small.gguf", replace(TINY, vocab_size=500))
        with pytest.raises(ConfigurationError, match="500 against 512 tokens.*same family"):
            load(models / "tiny.gguf", draft_model_path=str(path))

    def test_a_draft_that_is_not_there_is_named(self, models: Path) -> None:
        with pytest.raises(ConfigurationError, match="no model at /nowhere"):
            load(models / "tiny.gguf", draft_model_path="/nowhere.gguf")
