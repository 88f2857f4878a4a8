"""Steps of fixed shapes. There is no GPU where these tests run: what is recorded is computed anew over the same
memory, which is what a replay of a CUDA graph does."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chatfleet.engines.transformers.graphs import RecordedSteps, padded_pages, padded_rows
from chatfleet.engines.transformers.runner import trial_sequence
from chatfleet.engines.transformers.scheduler import Part
from engines.transformers_models import Driver, random_prompt, save_model


class Recorder:
    """Counts recordings; the replay returns the memory that the recording returned."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.recordings += 1
        result = compute()
        return lambda: result.copy_(compute())


@pytest.fixture(scope="module", params=["qwen2", "mistral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"sliding_window": 7} if request.param == "mistral" else {}
    return save_model(tmp_path_factory.mktemp("models") / request.param, request.param, **settings)


def recorded(model: Path, recorder: Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]) -> Driver:
    driver = Driver(model)
    runner = driver.backend._runner
    with torch.inference_mode():
        runner._recorded = RecordedSteps(runner._forward, recorder, 16, torch.device("cpu"))
    return driver


def test_replayed_steps_give_the_same_tokens(model: Path) -> None:
    plain, recorder = Driver(model), Recorder()
    driver = recorded(model, recorder)
    answers = []
    for other in (plain, driver):
        requests = []
        for seed in range(5):
            requests.append(other.add(random_prompt(3 + 20 * seed, seed), max_tokens=10 + 12 * seed))
            other.step()
            other.step()
        other.finish()
        answers.append([other.tokens(request_id) for request_id in requests])
    assert answers[0] == answers[1]
    assert 1 < recorder.recordings < 12


def test_one_long_answer_among_short_ones_is_not_what_all_are_padded_to() -> None:
    def fail(*arguments: object) -> torch.Tensor:
        raise AssertionError("recorded")

    steps = RecordedSteps(fail, fail, 16, torch.device("cpu"))
    sequences = [trial_sequence([0] * length) for length in (3000, *[6] * 31)]
    parts = [Part(sequence, len(sequence.token_ids) - 1, len(sequence.token_ids)) for sequence in sequences]
    assert steps.run(parts) is None
    with pytest.raises(AssertionError, match="recorded"):
        steps.run(parts[:1])


def test_steps_that_cannot_be_recorded_are_computed_as_ever(model: Path) -> None:
    def refuse(compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    driver = recorded(model, refuse)
    assert driver.answer(random_prompt(9)) == Driver(model).answer(random_prompt(9))


@pytest.mark.parametrize(("rows", "padded"), [(1, 1), (3, 4), (8, 8), (9, 16), (63, 64), (65, 96), (500, 512)])
def test_rows_are_padded_to_few_sizes(rows: int, padded: int) -> None:
    assert padded_rows(rows) == padded


@pytest.mark.parametrize(("pages", "padded"), [(1, 8), (9, 16), (64, 64), (65, 128)])
def test_pages_are_padded_to_powers_of_two(pages: int, padded: int) -> None:
    assert padded_pages(pages) == padded
