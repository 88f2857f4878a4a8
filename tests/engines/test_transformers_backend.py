"""The transformers engine's own batching: joining and leaving, pages, preemption, prefixes, exactness."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import RequestRefused
from chatfleet.worker.model_source import bundled_model_path
from engines.transformers_models import CONTEXT_LENGTH, Driver, random_prompt, save_model
from support.suites import quick

KV_TOKEN_BYTES = 3 * 2 * 2 * 16 * 4
"""Layers x keys and values x heads x size x bytes of the tiny model."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture(scope="module")
def driver(model: Path) -> Driver:
    return Driver(model)


@pytest.fixture(scope="module")
def exact(model: Path) -> Driver:
    return Driver(model, deterministic=True)


def small_pool(model: Path, tokens: int) -> Driver:
    """As many pages as hold that many tokens."""
    return Driver(model, kv_cache_gb=(tokens * KV_TOKEN_BYTES + 1) / 1e9)


def test_requests_join_and_leave_between_steps(driver: Driver) -> None:
    alone = [driver.answer(random_prompt(20, seed), max_tokens=12) for seed in range(4)]
    together = []
    for seed in range(4):
        together.append(driver.add(random_prompt(20, seed), max_tokens=12))
        driver.step()
        driver.step()
    driver.finish()
    assert [driver.tokens(request_id) for request_id in together] == alone


def test_a_long_prompt_is_read_beside_answers_that_go_on(driver: Driver) -> None:
    short = driver.add(random_prompt(4), max_tokens=40)
    driver.step()
    long = driver.add(random_prompt(250, 1), max_tokens=4)
    before = len(driver.tokens(short))
    while not driver.tokens(long):
        driver.step()
    # 256 tokens a step at most: the prompt takes one step or more, and the answer got a token in each.
    assert len(driver.tokens(short)) > before
    driver.finish()


@pytest.mark.long
def test_a_request_that_is_preempted_goes_on_as_if_nothing_was(model: Path, driver: Driver) -> None:
    prompts = [random_prompt(60, seed) for seed in range(4)]
    expected = [driver.answer(prompt, max_tokens=60) for prompt in prompts]
    tight = small_pool(model, 280)
    requests = [tight.add(prompt, max_tokens=60) for prompt in prompts]
    tight.finish()
    assert tight.backend._scheduler.preemptions > 0
    assert [tight.tokens(request_id) for request_id in requests] == expected
    assert tight.backend.stats().kv_cache_usage == 0


def test_prompt_logprobs_survive_preemption(model: Path, driver: Driver) -> None:
    tight = small_pool(model, 280)
    requests = [
        tight.add(random_prompt(60, seed), max_tokens=60, prompt_logprobs=True, logprobs=1) for seed in range(4)
    ]
    tight.finish()
    for request_id in requests:
        told = [delta.prompt_logprobs for delta in tight.deltas[request_id] if delta.prompt_logprobs is not None]
        assert [len(entries) for entries in told] == [60]


def test_a_prompt_that_begins_alike_is_not_computed_again(model: Path) -> None:
    driver = Driver(model)
    shared = random_prompt(100)
    first = driver.add([*shared, 1], max_tokens=4)
    driver.finish()
    second = driver.add([*shared, 2], max_tokens=4)
    driver.finish()
    assert driver.deltas[first][0].cached_tokens == 0
    assert driver.deltas[second][0].cached_tokens == 96  # whole pages of 16
    fresh = Driver(model)
    assert driver.tokens(second) == fresh.answer([*shared, 2], max_tokens=4)


def test_a_prompt_that_is_all_cached_still_gets_an_answer(model: Path) -> None:
    driver = Driver(model)
    prompt = random_prompt(64)
    assert driver.answer(prompt) == driver.answer(prompt)


def test_answers_that_run_beside_each_other_share_their_prompt(model: Path) -> None:
    driver = Driver(model)
    prompt = random_prompt(128)
    driver.add(prompt, max_tokens=32)
    driver.step()
    driver.step()
    used = driver.backend.stats().kv_cache_usage
    driver.add(prompt, max_tokens=32)
    driver.step()
    assert driver.backend.stats().kv_cache_usage < 1.5 * used
    driver.finish()


@pytest.mark.long
@pytest.mark.parametrize("neighbours", [1, 16])
def test_exact_answers_do_not_depend_on_the_neighbours(exact: Driver, neighbours: int) -> None:
    prompts = [random_prompt(10 + 7 * seed, 100 + seed) for seed in range(4)]
    alone = [exact.answer(prompt, max_tokens=24) for prompt in prompts]
    for number in range(neighbours):
        exact.add(random_prompt(5 + number, number), max_tokens=20, temperature=1.0)
    exact.step()
    requests = [exact.add(prompt, max_tokens=24) for prompt in prompts]
    exact.finish()
    assert [exact.tokens(request_id) for request_id in requests] == alone


def test_exact_log_probabilities_do_not_depend_on_the_neighbours(model: Path) -> None:
    """The same bits, not only the same tokens."""

    def values(neighbours: int) -> list[float]:
        driver = Driver(model, deterministic=True)
        for number in range(neighbours):
            driver.add(random_prompt(5 + number, number), max_tokens=30, temperature=1.0)
        driver.step()
        request_id = driver.add(random_prompt(40, 7), max_tokens=24, logprobs=3)
        driver.finish()
        entries = [entry for delta in driver.deltas[request_id] for entry in delta.logprobs or []]
        return [value for entry in entries for value in (entry.logprob, *(top for _, top in entry.top))]

    assert values(0) == values(16)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 5}, {"frequency_penalty": 1.0}])
@pytest.mark.parametrize("given", quick(1, [7, 1, 23]))
def test_an_answer_goes_on_behind_given_tokens(exact: Driver, sampling: dict[str, float], given: int) -> None:
    prompt = random_prompt(30, 3)
    whole = exact.answer(prompt, max_tokens=24, **sampling)
    assert exact.answer(prompt, whole[:given], max_tokens=24, **sampling) == whole[given:]


def test_a_cancelled_request_gives_back_its_pages(model: Path) -> None:
    driver = Driver(model)
    request_id = driver.add(random_prompt(100), max_tokens=100)
    for _ in range(5):
        driver.step()
    assert driver.backend.stats().kv_cache_usage > 0
    driver.backend.cancel(request_id)
    assert driver.backend.stats().kv_cache_usage == 0
    assert driver.backend.next_step_s() is None


def test_a_row_without_finite_logits_fails_alone(model: Path) -> None:
    driver = Driver(model)
    healthy = driver.answer(random_prompt(10), max_tokens=8)
    with torch.no_grad():
        driver.backend._loaded.model.get_input_embeddings().weight[7] = float("nan")
    broken, other = driver.add([7, 8, 9], max_tokens=8), driver.add(random_prompt(10), max_tokens=8)
    assert 7 not in random_prompt(10)
    driver.finish()
    assert driver.deltas[broken][-1].fault is not None
    assert driver.tokens(other) == healthy
    assert driver.answer(random_prompt(3, 1)) != [] and driver.backend.stats().kv_cache_usage == 0


def test_what_a_failed_row_left_reaches_nobody(model: Path) -> None:
    driver = small_pool(model, 48)
    embedding = driver.backend._loaded.model.get_input_embeddings().weight
    healthy = embedding[7].clone()
    with torch.no_grad():
        embedding[7] = float("nan")
        assert driver.answer([7] * 40, max_tokens=4) == []
        embedding[7] = healthy
    assert len(driver.answer(random_prompt(3, 2), max_tokens=20)) == 20


def test_a_request_that_fails_takes_nothing_from_those_that_share_its_prompt(model: Path) -> None:
    driver = Driver(model)
    prompt = random_prompt(64)
    expected = driver.answer([*prompt, 1], max_tokens=24)
    beside = driver.add([*prompt, 1], max_tokens=24)
    driver.step()
    broken = driver.add([*prompt, 2], max_tokens=8, repetition_penalty=1e-60)
    driver.finish()
    assert driver.deltas[broken][-1].fault is not None
    assert driver.tokens(beside) == expected
    assert driver.answer([*prompt, 1], max_tokens=24) == expected


def test_an_embedding_that_is_no_number_is_a_fault_and_leaves_nothing(model: Path) -> None:
    driver = small_pool(model, 48)
    embedding = driver.backend._loaded.model.get_input_embeddings().weight
    healthy = embedding[7].clone()
    with torch.no_grad():
        embedding[7] = float("nan")
        with pytest.raises(RequestRefused, match="finite"):
            driver.backend.embed([7] * 40)
        embedding[7] = healthy
    assert len(driver.answer(random_prompt(3, 2), max_tokens=20)) == 20


def test_a_failed_step_leaves_a_working_engine(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.add(random_prompt(10))
    with monkeypatch.context() as patch:
        patch.setattr(driver.backend._runner, "run", lambda parts: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            driver.step()
    driver.backend.recover()
    assert driver.backend.next_step_s() is None
    assert len(driver.answer(random_prompt(10))) == 16


def test_embeddings_are_the_mean_of_the_last_hidden_states(model: Path, driver: Driver) -> None:
    prompt = random_prompt(100)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = plain.base_model(torch.tensor([prompt])).last_hidden_state[0].mean(dim=0)
    expected = (hidden / hidden.norm()).numpy()
    np.testing.assert_allclose(np.frombuffer(driver.backend.embed(prompt), "<f4"), expected, atol=1e-5)


def test_an_embedding_takes_the_pages_of_running_requests_only_for_a_while(model: Path, driver: Driver) -> None:
    expected = driver.answer(random_prompt(100), max_tokens=40)
    tight = small_pool(model, 160)
    request_id = tight.add(random_prompt(100), max_tokens=40)
    tight.step()
    tight.step()
    tight.backend.embed(random_prompt(150, 1))
    tight.finish()
    assert tight.tokens(request_id) == expected


@pytest.mark.long
def test_embeddings_let_those_that_they_preempt_have_a_token(model: Path) -> None:
    tight = small_pool(model, 160)
    request_id = tight.add(random_prompt(100), max_tokens=40)
    for turn in range(400):
        if tight.backend.next_step_s() is None:
            break
        if tight.backend.embedding_ready():
            tight.backend.embed(random_prompt(150, turn))
        tight.step()
    assert len(tight.tokens(request_id)) == 40


@pytest.mark.long
@pytest.mark.parametrize("model_type", ["bloom", "qwen3_next"])
def test_models_that_are_not_batched_take_the_same_prompt_again_and_again(tmp_path: Path, model_type: str) -> None:
    settings = {
        "bloom": {"n_layer": 2, "n_head": 4},
        "qwen3_next": {
            "head_dim": 16,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
    }
    driver = Driver(save_model(tmp_path, model_type, **settings[model_type]), context_length=200)
    first = driver.answer(random_prompt(40), max_tokens=20)
    again = [driver.add(random_prompt(40), max_tokens=20) for _ in range(3)]
    driver.finish()
    assert [driver.tokens(request_id) for request_id in again] == [first] * 3


def test_the_bound_on_tokens_holds_for_steps_that_only_read(model: Path) -> None:
    driver = Driver(model, max_num_batched_tokens=32)
    driver.add(random_prompt(200), max_tokens=1)
    assert max(part.end - part.start for part in driver.backend._scheduler.plan()) == 32


@pytest.mark.long
def test_the_context_is_used_to_its_last_token(driver: Driver) -> None:
    assert len(driver.answer(random_prompt(CONTEXT_LENGTH - 1), max_tokens=1)) == 1
    assert len(driver.answer([5], max_tokens=CONTEXT_LENGTH - 1)) == CONTEXT_LENGTH - 1
    with pytest.raises(RequestRefused, match="does not fit"):
        driver.add(random_prompt(CONTEXT_LENGTH), max_tokens=1)


@pytest.mark.parametrize(("prompt", "message"), [([], "empty"), ([300], "vocabulary"), ([-1], "vocabulary")])
def test_prompts_that_cannot_run_are_refused(driver: Driver, prompt: list[int], message: str) -> None:
    with pytest.raises(RequestRefused, match=message):
        driver.add(prompt)


def test_a_gguf_file_is_loaded() -> None:
    driver = Driver(bundled_model_path())
    assert driver.backend.capabilities.context_length == 1024
    assert len(driver.answer([1, 2, 3], max_tokens=5)) == 5


def test_weights_in_pickle_files_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="safetensors"):
        Driver(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"device": "cuda"}, "is not there"),
        ({"device": "teapot"}, "no device"),
        ({"deterministic": True, "dtype": "bfloat16"}, "float32"),
        ({"context_length": 100_000}, "up to 256"),
    ],
)
def test_settings_that_cannot_be_are_explained(model: Path, config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Driver(model, **config)


def test_a_model_that_cannot_be_served_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, "mamba", state_size=4)
    with pytest.raises(ConfigurationError, match="'mamba'"):
        Driver(tmp_path)


def test_a_folder_that_is_no_model_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="could not load"):
        Driver(tmp_path)
