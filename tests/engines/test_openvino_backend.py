"""The OpenVINO backend, driven in process with small random models."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from gguf import GGMLQuantizationType

import chatfleet.engines.openvino.backend as backend_module
import chatfleet.engines.openvino.conversion as conversion
from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import RequestRefused
from chatfleet.engines.openvino.admission import Pool
from chatfleet.engines.openvino.devices import find_device
from chatfleet.engines.openvino.model_files import inspect_model, ir_folder
from engines.openvino_models import FLAT, TINY, Driver, Reference, load, prompts, write_ir, writer

PROMPT = [5, 9, 100, 42, 17, 300]
KV_BYTES_PER_BLOCK = {"f16": 2 * 2 * 2 * 16 * 2 * 32, "f32": 2 * 2 * 2 * 16 * 4 * 32}
"""Of TINY: keys and values x layers x KV heads x head size x element x tokens."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models")
    writer.write_model(folder / "tiny.gguf", TINY)
    writer.write_model(folder / "flat.gguf", FLAT)
    return folder


@pytest.fixture(scope="module")
def reference(models: Path) -> Reference:
    return Reference(models / "tiny.gguf", TINY)


@pytest.fixture(scope="module")
def exact(models: Path) -> Iterator[Driver]:
    """TINY in float32, where tokens do not depend on the neighbours."""
    driver = load(models / "tiny.gguf", deterministic=True)
    yield driver
    driver.backend.close()


@pytest.fixture(scope="module")
def flat(models: Path) -> Iterator[Driver]:
    driver = load(models / "flat.gguf")
    yield driver
    driver.backend.close()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> int:
    """Backends made in this test compute 32 tokens a step, as with a model of half a billion weights."""
    monkeypatch.setattr(backend_module, "step_tokens", lambda **_: 32)
    return 32


class TestGreedy:
    def test_tokens_and_logprobs_are_those_of_transformers(self, exact: Driver, reference: Reference) -> None:
        request_id = exact.add(PROMPT, max_tokens=12, logprobs=0)
        exact.finish()
        token_ids, logprobs = reference.greedy(PROMPT, 12)
        assert exact.tokens(request_id) == token_ids
        got = [entry for delta in exact.deltas[request_id] for entry in delta.logprobs or []]
        assert [entry.token_id for entry in got] == token_ids
        # The weights pass through F16 on the way; half a percent is what that costs here.
        assert [entry.logprob for entry in got] == pytest.approx(logprobs, abs=5e-3)

    def test_each_step_gives_a_token(self, exact: Driver) -> None:
        request_id = exact.add(PROMPT, max_tokens=5)
        exact.finish()
        assert [len(delta.token_ids) for delta in exact.deltas[request_id]] == [1] * 5
        assert [delta.finish_reason for delta in exact.deltas[request_id]] == [None] * 4 + ["length"]

    @pytest.mark.parametrize("only_one", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 1e-9}])
    def test_settings_that_leave_one_token_are_greedy(
        self, exact: Driver, reference: Reference, only_one: dict[str, Any]
    ) -> None:
        assert exact.generate(PROMPT, **{"temperature": 5.0} | only_one) == reference.greedy(PROMPT, 8)[0]


class TestStopping:
    def test_the_models_own_end_token_ends_nothing_unless_given(self, tmp_path: Path, reference: Reference) -> None:
        token_ids, _ = reference.greedy(PROMPT, 8)
        driver = load(writer.write_model(tmp_path / "ends.gguf", TINY, eos_token_id=token_ids[2]), deterministic=True)
        assert driver.generate(PROMPT) == token_ids
        assert driver.generate(PROMPT, stop_token_ids=(500,)) == token_ids
        assert driver.generate(PROMPT, stop_token_ids=(token_ids[2],)) == token_ids[:3]


class TestMinTokens:
    @pytest.mark.parametrize(
        "sampling",
        [
            {},
            {"temperature": 2.0, "seed": 5},
            {"temperature": 2.0, "seed": 6, "top_p": 0.9, "top_k": 50, "min_p": 0.001},
            {"presence_penalty": -2.0, "frequency_penalty": 2.0},
        ],
    )
    def test_stop_tokens_do_not_come_before_it(self, exact: Driver, sampling: dict[str, Any]) -> None:
        stops = tuple(range(100, 500))  # most of the vocabulary
        for least in (1, 2, 20):
            request_id = exact.add(PROMPT, max_tokens=200, min_tokens=least, stop_token_ids=(*stops, 512), **sampling)
            exact.finish()
            token_ids = exact.tokens(request_id)
            assert not set(token_ids[:least]) & set(stops)
            assert exact.end(request_id) == "stop" and token_ids[-1] in stops and len(token_ids) > least

    def test_what_is_drawn_instead_is_the_best_of_the_others(self, exact: Driver, reference: Reference) -> None:
        log_probabilities = reference.log_probabilities(PROMPT)
        best, second = np.argsort(-log_probabilities)[:2].tolist()
        request_id = exact.add(PROMPT, max_tokens=2, min_tokens=1, stop_token_ids=(best,), logprobs=0)
        exact.finish()
        [entry, *_] = exact.deltas[request_id][0].logprobs or []
        assert entry.token_id == second
        assert entry.logprob == pytest.approx(float(log_probabilities[second]), abs=2e-2)

    def test_stop_tokens_beyond_the_vocabulary_are_no_harm(self, exact: Driver, reference: Reference) -> None:
        token_ids = exact.generate(PROMPT, min_tokens=4, stop_token_ids=(512, 2**30))
        assert token_ids == reference.greedy(PROMPT, 8)[0]


class TestSampling:
    def test_without_a_seed_the_tokens_differ(self, flat: Driver) -> None:
        assert flat.generate(PROMPT, temperature=1.0) != flat.generate(PROMPT, temperature=1.0)

    def test_requests_keep_their_own_settings_in_a_batch(self, exact: Driver, reference: Reference) -> None:
        settings = [{"temperature": 0.0}, {"temperature": 3.0, "seed": 1}, {"temperature": 3.0, "seed": 2, "top_k": 3}]
        alone = [exact.generate(PROMPT, **setting) for setting in settings]
        together = [exact.add(PROMPT, **setting) for setting in settings]
        exact.finish()
        assert [exact.tokens(request_id) for request_id in together] == alone
        assert alone[0] == reference.greedy(PROMPT, 8)[0]

    def test_top_k_and_top_p_bound_what_is_drawn(self, exact: Driver, reference: Reference) -> None:
        log_probabilities = reference.log_probabilities(PROMPT)
        by_rank = np.argsort(-log_probabilities)
        nucleus = int(np.searchsorted(np.cumsum(np.exp(log_probabilities[by_rank])), 0.9)) + 1
        drawn = {"top_k": 3, "top_p": nucleus}
        for name, allowed in drawn.items():
            value = {"top_k": 3, "top_p": 0.9}[name]
            tokens = {
                exact.generate(PROMPT, max_tokens=1, temperature=1.0, seed=seed, **{name: value})[0]
                for seed in range(60)
            }
            assert tokens <= set(by_rank[:allowed].tolist()), name
            assert len(tokens) > 1, name

    def test_min_p_drops_tokens_under_its_share_of_the_best(self, exact: Driver, reference: Reference) -> None:
        log_probabilities = reference.log_probabilities(PROMPT)
        allowed = np.flatnonzero(log_probabilities >= log_probabilities.max() + math.log(0.05))
        tokens = {exact.generate(PROMPT, max_tokens=1, temperature=1.0, seed=seed, min_p=0.05)[0] for seed in range(60)}
        assert tokens <= set(allowed.tolist())

    def test_logprobs_are_of_the_models_distribution(self, exact: Driver, reference: Reference) -> None:
        request_id = exact.add(
            PROMPT, max_tokens=3, temperature=3.0, top_k=40, presence_penalty=1.0, seed=5, logprobs=0
        )
        exact.finish()
        token_ids = exact.tokens(request_id)
        expected = [
            float(reference.log_probabilities(PROMPT + token_ids[:index])[token_id])
            for index, token_id in enumerate(token_ids)
        ]
        got = [entry.logprob for delta in exact.deltas[request_id] for entry in delta.logprobs or []]
        assert got == pytest.approx(expected, abs=2e-2)

    @pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
    def test_penalties_work_on_negative_logits(self, flat: Driver, penalty: str) -> None:
        # 200 draws out of 512: about 165 different ones without a penalty. The pipeline itself adds a
        # penalty to a negative logit: 40 different ones then, some 80 times.
        drawn = Counter(flat.generate(PROMPT, max_tokens=200, temperature=1.0, seed=3, **{penalty: 2.0}))
        assert len(drawn) > 180
        assert max(drawn.values()) <= 3

    def test_a_negative_frequency_penalty_makes_it_repeat(self, flat: Driver) -> None:
        drawn = Counter(flat.generate(PROMPT, max_tokens=200, temperature=1.0, seed=3, frequency_penalty=-2.0))
        assert max(drawn.values()) > 100


@pytest.fixture(scope="module")
def from_ir(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """TINY in float32 from an IR folder that somebody else has made, so without shifted logits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "shift_logits", lambda model_xml: None)
        with ir_folder(inspect_model(str(models / "tiny.gguf"))) as converted:
            folder = write_ir(tmp_path_factory.mktemp("ir") / "tiny", TINY, converted)
    driver = load(folder, deterministic=True)
    yield driver
    driver.backend.close()


class TestIRFolder:
    def test_it_gives_the_models_tokens(self, from_ir: Driver, reference: Reference) -> None:
        assert from_ir.generate(PROMPT) == reference.greedy(PROMPT, 8)[0]

    def test_repetition_penalty_is_applied_to_prompt_and_answer(self, from_ir: Driver, reference: Reference) -> None:
        token_ids: list[int] = []
        for _ in range(12):
            logits = reference.logits(PROMPT + token_ids)
            said = list(set(PROMPT + token_ids))
            logits[said] = np.where(logits[said] > 0, logits[said] / 3, logits[said] * 3)
            token_ids.append(int(logits.argmax()))
        assert from_ir.generate(PROMPT, max_tokens=12, repetition_penalty=3.0) == token_ids
        assert token_ids != reference.greedy(PROMPT, 12)[0]

    def test_penalties_that_would_be_wrong_are_refused_by_name(self, from_ir: Driver, exact: Driver) -> None:
        assert "repetition_penalty" in from_ir.backend.capabilities.parameters
        with pytest.raises(RequestRefused) as refused:
            from_ir.add(PROMPT, frequency_penalty=0.5)
        assert refused.value.fault.param == "frequency_penalty"
        with pytest.raises(RequestRefused) as refused:
            from_ir.add(PROMPT, min_tokens=3)
        assert refused.value.fault.param == "min_tokens"
        with pytest.raises(RequestRefused) as refused:
            exact.add(PROMPT, repetition_penalty=1.1)
        assert refused.value.fault.param == "repetition_penalty"

    def test_it_embeds(self, from_ir: Driver, reference: Reference) -> None:
        vector = np.frombuffer(from_ir.backend.embed(PROMPT), "<f4")
        assert float(vector @ reference.embedding(PROMPT)) > 0.9999


class TestRefusals:
    @pytest.mark.parametrize(
        ("param", "sampling"),
        [
            ("bad_words_token_ids", {"bad_words_token_ids": ((5,),)}),
            ("logit_bias", {"logit_bias": {3: 1.0}}),
            ("top_logprobs", {"logprobs": 2}),
        ],
    )
    def test_what_it_cannot_honour_is_refused_by_name(
        self, exact: Driver, param: str, sampling: dict[str, Any]
    ) -> None:
        with pytest.raises(RequestRefused) as refused:
            exact.add(PROMPT, **sampling)
        assert (refused.value.fault.kind, refused.value.fault.param) == ("unsupported", param)

    @pytest.mark.parametrize(
        ("prompt", "sampling"),
        [
            ([], {}),
            ([512], {}),
            ([-1], {}),
            (PROMPT, {"max_tokens": 0}),
            (PROMPT, {"temperature": math.nan}),
            (PROMPT, {"presence_penalty": 2.5}),
            (PROMPT, {"stop_token_ids": (-1,)}),
            (PROMPT, {"max_tokens": 1024}),
        ],
    )
    def test_what_is_out_of_range_is_invalid(self, exact: Driver, prompt: list[int], sampling: dict[str, Any]) -> None:
        with pytest.raises(RequestRefused) as refused:
            exact.add(prompt, **sampling)
        assert refused.value.fault.kind == "invalid"
        assert exact.backend.next_step_s() is None


class TestKVPool:
    def test_a_prompt_beyond_the_pool_is_refused_and_its_neighbour_unharmed(self, models: Path) -> None:
        driver = load(models / "tiny.gguf", kv_cache_gb=4 * KV_BYTES_PER_BLOCK["f16"] / 1e9)
        assert driver.backend.capabilities.context_length == 128
        neighbour = driver.add(PROMPT, max_tokens=40)
        driver.step()
        with pytest.raises(RequestRefused, match="128 tokens"):
            driver.add(prompts(1, 400)[0])
        driver.finish()
        assert driver.end(neighbour) == "length"
        assert len(driver.tokens(neighbour)) == 40

    def test_requests_that_outgrow_the_pool_together_all_get_their_tokens(self, models: Path, exact: Driver) -> None:
        each = {"max_tokens": 150}
        alone = [exact.generate(prompt, **each) for prompt in prompts(8, 40)]
        driver = load(models / "tiny.gguf", deterministic=True, kv_cache_gb=14 * KV_BYTES_PER_BLOCK["f32"] / 1e9)
        together = [driver.add(prompt, **each) for prompt in prompts(8, 40)]
        usage = 0.0
        while driver.backend.next_step_s() is not None:
            driver.step()
            usage = max(usage, driver.backend.stats().kv_cache_usage)
        assert usage > 0.9  # the pool was short
        assert [driver.end(request_id) for request_id in together] == ["length"] * 8
        assert [driver.tokens(request_id) for request_id in together] == alone

    @pytest.mark.parametrize("admission", [True, False])
    def test_requests_that_block_each_other_are_run_again(
        self, models: Path, exact: Driver, monkeypatch: pytest.MonkeyPatch, admission: bool
    ) -> None:
        # Both prefixes are cached and fill the pool: once both requests hold theirs, neither can go on, and the
        # pipeline ignores them. Admission keeps them apart; without it they are run again.
        driver = load(models / "tiny.gguf", deterministic=True, kv_cache_gb=12 * KV_BYTES_PER_BLOCK["f32"] / 1e9)
        long = prompts(2, 300)
        alone = [exact.generate(prompt) for prompt in long]
        for prompt in long:
            driver.generate(prompt[:192], max_tokens=1)
        if not admission:
            monkeypatch.setattr(Pool, "admits", lambda *_: True)
        restarts: list[int] = []
        restart = driver.backend._restart
        monkeypatch.setattr(driver.backend, "_restart", lambda entry: restarts.append(1) or restart(entry))
        together = [driver.add(prompt) for prompt in long]
        driver.finish()
        assert bool(restarts) is not admission
        assert [driver.end(request_id) for request_id in together] == ["length"] * 2
        assert [driver.tokens(request_id) for request_id in together] == alone

    def test_more_requests_than_allowed_wait_their_turn(self, models: Path) -> None:
        driver = load(models / "tiny.gguf", max_concurrency=3)
        ids = [driver.add(prompt) for prompt in prompts(7, 10)]
        driver.step()
        assert (driver.backend.stats().running, driver.backend.stats().waiting) == (3, 4)
        driver.finish()
        assert [driver.end(request_id) for request_id in ids] == ["length"] * 7

    def test_the_pool_is_no_larger_than_the_requests_can_fill(self, models: Path) -> None:
        driver = load(models / "tiny.gguf", max_concurrency=2)
        driver.generate(PROMPT)
        used = driver.backend._pipeline.get_metrics().kv_cache_size_in_bytes
        assert used == 2 * 1024 // 32 * KV_BYTES_PER_BLOCK["f16"]


class TestPrefillSplit:
    def test_a_long_prompt_does_not_stall_the_others(self, models: Path, small_steps: int) -> None:
        driver = load(models / "tiny.gguf")
        neighbour = driver.add(PROMPT, max_tokens=30)
        driver.step()
        driver.add(prompts(1, 640)[0], max_tokens=1)
        for _ in range(20):  # 640 tokens, at most 31 of them a step
            assert [delta.request_id for delta in driver.step()] == [neighbour]
        driver.finish()

    def test_a_prompt_is_read_while_as_many_as_can_be_decode(self, models: Path, small_steps: int) -> None:
        driver = load(models / "tiny.gguf")
        many = [driver.add(prompt, max_tokens=60) for prompt in prompts(60, 8)]
        driver.finish()
        assert all(driver.end(request_id) == "length" for request_id in many)
        assert driver.backend._pool.max_running < small_steps

    def test_a_shared_prefix_is_not_computed_again(self, models: Path, small_steps: int) -> None:
        driver = load(models / "tiny.gguf")
        prompt = prompts(1, 640)[0]
        driver.add(prompt, max_tokens=1)
        assert driver.finish() >= 20
        driver.add(prompt[:-3] + [1, 2, 3], max_tokens=1)
        assert driver.finish() <= 2


class TestDeterminism:
    def test_exact_token_ids_continue_an_answer(self, exact: Driver) -> None:
        whole = exact.generate(PROMPT, max_tokens=40)
        assert exact.generate(PROMPT + whole[:17], max_tokens=23) == whole[17:]

    def test_what_is_generated_again_and_differs_is_a_fault(self, exact: Driver) -> None:
        sampling = {"seed": 7, "temperature": 2.0, "max_tokens": 20}
        whole = exact.generate(PROMPT, **sampling)
        neighbour = exact.add(PROMPT, max_tokens=20)
        other = exact.add(PROMPT, [*whole[:4], (whole[4] + 1) % 500, *whole[5:9]], **sampling)
        exact.finish()
        assert "other tokens" in exact.end(other) and not exact.tokens(other)
        assert exact.tokens(neighbour) == exact.generate(PROMPT, max_tokens=20)

    def test_what_is_generated_again_and_ends_too_soon_is_a_fault(self, exact: Driver) -> None:
        sampling = {"seed": 7, "temperature": 2.0, "max_tokens": 20}
        whole = exact.generate(PROMPT, **sampling)
        other = exact.add(PROMPT, whole[:9], **sampling, stop_token_ids=(whole[4],))
        exact.finish()
        assert "other tokens" in exact.end(other) and not exact.tokens(other)

    def test_otherwise_a_begun_answer_with_a_seed_goes_on_with_other_random_numbers(self, flat: Driver) -> None:
        whole = flat.generate(PROMPT, seed=7, temperature=1.0, max_tokens=40)
        rests = [flat.generate(PROMPT, whole[:20], seed=7, temperature=1.0, max_tokens=40) for _ in range(2)]
        assert rests[0] == rests[1] and len(rests[0]) == 20
        assert rests[0] != whole[:20]  # the draws of the beginning, once more

    @pytest.mark.parametrize("begun", [[5] * 8, [5] * 9, [-1], [512]])
    def test_an_answer_that_cannot_go_on_is_refused(self, exact: Driver, begun: list[int]) -> None:
        with pytest.raises(RequestRefused) as refused:
            exact.add(PROMPT, begun)
        assert refused.value.fault.kind == "invalid"


class TestCancellation:
    def test_a_cancelled_request_is_silent_and_its_memory_is_free(self, models: Path) -> None:
        driver = load(models / "tiny.gguf", kv_cache_gb=40 * KV_BYTES_PER_BLOCK["f16"] / 1e9)
        victim = driver.add(prompts(1, 900)[0], max_tokens=100)
        while not driver.deltas[victim]:
            driver.step()
        before = driver.backend.stats().kv_cache_usage
        driver.backend.cancel(victim)
        seen = len(driver.deltas[victim])
        assert driver.backend.next_step_s() == 0.0  # the pipeline frees in its next step
        driver.step()
        assert driver.backend.next_step_s() is None
        driver.generate(PROMPT, max_tokens=1)
        assert len(driver.deltas[victim]) == seen
        assert before > 0.7
        assert driver.backend._pipeline.get_metrics().cache_usage < 10

    def test_a_request_can_take_the_place_of_a_cancelled_one_that_filled_the_pool(
        self, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        driver = load(models / "tiny.gguf", kv_cache_gb=16 * KV_BYTES_PER_BLOCK["f16"] / 1e9)
        monkeypatch.setattr(driver.backend, "_restart", lambda entry: pytest.fail("it was ignored"))
        for prompt in prompts(4, 500):
            victim = driver.add(prompt, max_tokens=12)
            driver.step()
            driver.backend.cancel(victim)
        assert len(driver.generate(prompts(1, 500, seed=1)[0], max_tokens=12)) == 12

    def test_a_waiting_request_can_be_cancelled(self, models: Path) -> None:
        driver = load(models / "tiny.gguf", max_concurrency=1)
        first, second = driver.add(PROMPT), driver.add(PROMPT)
        driver.step()
        driver.backend.cancel(second)
        driver.finish()
        assert driver.end(first) == "length"
        assert driver.deltas[second] == []

    def test_cancelling_the_unknown_is_no_error(self, exact: Driver) -> None:
        exact.backend.cancel(987654)

    def test_neighbours_of_a_cancelled_request_go_on(self, exact: Driver, reference: Reference) -> None:
        victim, neighbour = exact.add(prompts(1, 50)[0], max_tokens=50), exact.add(PROMPT)
        exact.step()
        exact.backend.cancel(victim)
        exact.finish()
        assert exact.tokens(neighbour) == reference.greedy(PROMPT, 8)[0]


class FailingPipeline:
    """Takes requests as the real one does, and cannot step."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def step(self) -> None:
        raise RuntimeError("the device is gone")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


class TestRecovery:
    def test_after_a_failed_step_a_new_pipeline_serves(self, models: Path, reference: Reference) -> None:
        driver = load(models / "tiny.gguf", deterministic=True, max_concurrency=1)
        driver.add(PROMPT, max_tokens=100)
        driver.add(PROMPT)
        driver.step()
        driver.backend._pipeline = FailingPipeline(driver.backend._pipeline)
        with pytest.raises(RuntimeError, match="device is gone"):
            driver.step()
        driver.backend.recover()
        assert driver.backend.next_step_s() is None
        assert (driver.backend.stats().running, driver.backend.stats().waiting) == (0, 0)
        assert driver.generate(PROMPT) == reference.greedy(PROMPT, 8)[0]


class TestEmbeddings:
    @pytest.mark.parametrize("length", [1, 6, 700])  # 700 takes two inferences
    def test_they_are_the_normalised_mean_of_the_hidden_states(
        self, exact: Driver, reference: Reference, length: int
    ) -> None:
        prompt = prompts(1, length, seed=length)[0]
        vector = np.frombuffer(exact.backend.embed(prompt), "<f4")
        assert vector.size == exact.backend.capabilities.embedding_dim == TINY.hidden_size
        assert float(np.linalg.norm(vector)) == pytest.approx(1.0, abs=1e-5)
        assert vector == pytest.approx(reference.embedding(prompt), abs=2e-3)

    def test_at_default_precision_they_are_close(self, models: Path, reference: Reference) -> None:
        driver = load(models / "tiny.gguf")
        assert driver.backend._hidden_states._future is None  # made on demand
        vector = np.frombuffer(driver.backend.embed(prompts(1, 30)[0]), "<f4")
        assert float(vector @ reference.embedding(prompts(1, 30)[0])) > 0.999

    def test_one_does_not_leak_into_the_next(self, exact: Driver) -> None:
        first = exact.backend.embed(PROMPT)
        exact.backend.embed(prompts(1, 40)[0])
        assert exact.backend.embed(PROMPT) == first

    def test_a_running_generation_is_unharmed(self, exact: Driver, reference: Reference) -> None:
        request_id = exact.add(PROMPT)
        exact.step()
        exact.backend.embed(prompts(1, 40)[0])
        exact.finish()
        assert exact.tokens(request_id) == reference.greedy(PROMPT, 8)[0]

    @pytest.mark.parametrize("prompt", [[], [512], [1] * 1025])
    def test_bad_input_is_refused(self, exact: Driver, prompt: list[int]) -> None:
        with pytest.raises(RequestRefused) as refused:
            exact.backend.embed(prompt)
        assert refused.value.fault.kind == "invalid"


class TestLoading:
    def test_a_model_without_a_tokenizer_loads(self, tmp_path: Path, reference: Reference) -> None:
        driver = load(writer.write_model(tmp_path / "bare.gguf", TINY, tokenizer=False), deterministic=True)
        assert driver.generate(PROMPT) == reference.greedy(PROMPT, 8)[0]

    @pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0"])
    def test_quantised_models_load_as_they_are(self, tmp_path: Path, dtype: str) -> None:
        path = writer.write_model(tmp_path / "quantised.gguf", TINY, dtype=GGMLQuantizationType[dtype])
        driver, quantised = load(path, deterministic=True), Reference(path, TINY)
        request_id = driver.add(PROMPT, logprobs=0)
        driver.finish()
        token_ids, logprobs = quantised.greedy(PROMPT, 8)
        assert driver.tokens(request_id) == token_ids
        got = [entry.logprob for delta in driver.deltas[request_id] for entry in delta.logprobs or []]
        assert got == pytest.approx(logprobs, abs=0.05)
        vector = np.frombuffer(driver.backend.embed(PROMPT), "<f4")
        assert float(vector @ quantised.embedding(PROMPT)) > 0.999
        for prompt in prompts(10, 33):
            driver.add(prompt, max_tokens=20)
        assert driver.generate(PROMPT) == token_ids  # whatever the neighbours

    def test_nothing_is_left_behind(self, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        beside = sorted(models.iterdir())
        driver = load(models / "tiny.gguf")
        driver.backend.embed(PROMPT)
        assert list(scratch.iterdir()) == []
        assert sorted(models.iterdir()) == beside

    def test_the_context_can_be_lowered(self, models: Path) -> None:
        driver = load(models / "tiny.gguf", context_length=100)
        assert driver.backend.capabilities.context_length == 100
        with pytest.raises(RequestRefused):
            driver.add(PROMPT, max_tokens=95)
        assert len(driver.generate(PROMPT, max_tokens=94)) == 94

    def test_a_context_beyond_the_models_is_refused(self, models: Path) -> None:
        with pytest.raises(ConfigurationError, match="trained for 1024"):
            load(models / "tiny.gguf", context_length=1025)

    @pytest.mark.parametrize("dtype", ["BF16", "F32"])
    def test_weights_that_openvino_cannot_read_are_named_with_the_way_out(self, tmp_path: Path, dtype: str) -> None:
        path = writer.write_model(tmp_path / "model.gguf", TINY, dtype=GGMLQuantizationType[dtype])
        with pytest.raises(ConfigurationError, match=f"weights as {dtype}.*Convert it to F16"):
            load(path)

    def test_a_device_that_is_not_there_is_named_with_those_that_are(self, models: Path) -> None:
        with pytest.raises(ConfigurationError, match="no device NPU7 .*there is .*CPU"):
            load(models / "tiny.gguf", device="npu7")

    def test_a_device_by_its_name_or_one_of_several_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ov.Core, "available_devices", ["CPU", "GPU.0", "GPU.1", "NPU"])
        assert find_device("auto") == "CPU"
        for device in ("cpu", "gpu", "gpu.1", "npu", "hetero:gpu,cpu"):
            assert find_device(device) == device.upper()
        for device in ("gpu.2", "xpu", "gp"):
            with pytest.raises(ConfigurationError, match="GPU.0, GPU.1, NPU"):
                find_device(device)

    def test_a_device_that_cannot_run_it_says_which_ones_can(
        self, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backend_module, "find_device", lambda _: "NPU")
        with pytest.raises(ConfigurationError, match="on NPU: .*made for CPUs and GPUs"):
            load(models / "tiny.gguf")
