"""Log probabilities of prompts' own tokens, which are read beside the pipeline."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import chatfleet.engines.openvino.backend as backend_module
from chatfleet.engines.openvino.model_files import inspect_model, ir_folder
from chatfleet.engines.openvino.reading import LogProbabilities
from engines.openvino_models import TINY, Driver, Reference, load, prompts, write_ir, writer
from support.wire import PATIENCE_S


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = writer.write_model(tmp_path_factory.mktemp("models") / "tiny.gguf", TINY)
    return path


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model, TINY)


@pytest.fixture(scope="module")
def exact(model: Path) -> Iterator[Driver]:
    driver = load(model, deterministic=True)
    yield driver
    driver.backend.close()


def finish(driver: Driver) -> None:
    """Step until nothing is left, as the engine's loop does: the graphs are made in threads."""
    deadline = time.monotonic() + PATIENCE_S
    while (wait_s := driver.backend.next_step_s()) is not None:
        assert time.monotonic() < deadline
        time.sleep(wait_s)
        driver.step()


def scores(driver: Driver, request_id: int) -> list[float | None]:
    """What the request was told of its prompt, which is told once."""
    told = [delta.prompt_logprobs for delta in driver.deltas[request_id] if delta.prompt_logprobs is not None]
    assert len(told) == 1 and told[0] is driver.deltas[request_id][0].prompt_logprobs
    return [None if entry is None else entry.logprob for entry in told[0]]


def expected(reference: Reference, prompt: list[int]) -> list[float]:
    return [float(reference.log_probabilities(prompt[:end])[prompt[end]]) for end in range(1, len(prompt))]


def test_they_are_those_of_transformers(exact: Driver, reference: Reference) -> None:
    prompt = prompts(1, 70)[0]
    request_id = exact.add(prompt, max_tokens=3, logprobs=0, prompt_logprobs=True)
    finish(exact)
    first, *rest = scores(exact, request_id)
    assert first is None
    assert rest == pytest.approx(expected(reference, prompt), rel=1e-2, abs=5e-3)  # some weights pass through F16
    entries = exact.deltas[request_id][0].prompt_logprobs or []
    assert [entry.token_id for entry in entries if entry is not None] == prompt[1:]
    assert exact.tokens(request_id) == reference.greedy(prompt, 3)[0]


def test_what_the_prefix_cache_holds_is_scored_too(exact: Driver) -> None:
    prompt = prompts(1, 203, seed=1)[0]
    values = []
    for _ in range(2):
        exact.generate(prompt, max_tokens=1)
        request_id = exact.add(prompt, max_tokens=1, prompt_logprobs=True)
        finish(exact)
        values.append(scores(exact, request_id))
    assert len(values[0]) == 203 and values[0] == values[1]


@pytest.mark.long
def test_neighbours_go_on_and_change_nothing(
    model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "step_tokens", lambda **_: 32)
    driver = load(model, deterministic=True)
    prompt, other = prompts(2, 320, seed=2)
    driver.add([1], max_tokens=0, prompt_logprobs=True)
    finish(driver)  # the graphs are there
    neighbour = driver.add(other[:20], max_tokens=40)
    driver.step()
    request_id = driver.add(prompt, max_tokens=1, prompt_logprobs=True)
    for _ in range(9):  # 319 tokens in tens parts, and the last of them makes the answer begin
        assert [delta.request_id for delta in driver.step()] == [neighbour]
    finish(driver)
    assert scores(driver, request_id)[1:] == pytest.approx(expected(reference, prompt), rel=1e-2, abs=5e-3)
    assert driver.tokens(neighbour) == reference.greedy(other[:20], 40)[0]
    driver.backend.close()


def test_at_default_precision_they_are_close(model: Path, reference: Reference) -> None:
    driver = load(model)
    prompt = prompts(1, 40, seed=3)[0]
    request_id = driver.add(prompt, max_tokens=0, prompt_logprobs=True)
    finish(driver)
    off = np.abs(np.array(scores(driver, request_id)[1:]) - expected(reference, prompt))
    assert float(off.mean()) < 0.15 and float(off.max()) < 0.6
    driver.backend.close()


@pytest.mark.parametrize("length", [1, 2, 700])
def test_without_an_answer_the_prompt_is_only_read(exact: Driver, reference: Reference, length: int) -> None:
    prompt = prompts(1, length, seed=length)[0]
    before = exact.backend.stats().steps
    request_id = exact.add(prompt, max_tokens=0, prompt_logprobs=True)
    assert exact.backend.stats().waiting == 1
    finish(exact)
    assert exact.tokens(request_id) == [] and exact.end(request_id) == "length"
    values = scores(exact, request_id)
    assert len(values) == length
    assert values[1:3] == pytest.approx(expected(reference, prompt[:3]), rel=1e-2, abs=5e-3)
    assert exact.backend.stats().steps == before


def test_choices_of_one_prompt_are_read_once(exact: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, other = prompts(2, 30, seed=4)
    exact.backend.embed(other)
    read: list[int] = []
    plain = LogProbabilities.of
    monkeypatch.setattr(LogProbabilities, "of", lambda *args: read.append(len(args[1])) or plain(*args))
    ids = [
        exact.add(text, max_tokens=2, seed=seed, prompt_logprobs=True)
        for seed, text in enumerate([prompt, other, prompt])
    ]
    finish(exact)
    assert sum(read) == 58
    assert scores(exact, ids[0]) == scores(exact, ids[2]) != scores(exact, ids[1])
    assert all(len(exact.tokens(request_id)) == 2 for request_id in ids)


def test_a_cancelled_one_is_forgotten(exact: Driver) -> None:
    victim, other = (exact.add(prompt, max_tokens=1, prompt_logprobs=True) for prompt in prompts(2, 600, seed=5))
    exact.step()
    exact.backend.cancel(victim)
    finish(exact)
    assert exact.deltas[victim] == [] and exact.end(other) == "length"
    assert exact.backend.stats().waiting == 0


def test_an_embedding_between_its_parts_disturbs_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "step_tokens", lambda **_: 32)
    driver = load(model, deterministic=True)
    prompt, other = prompts(2, 100, seed=6)
    values, vectors = [], [driver.backend.embed(other)]
    for disturbed in (False, True):
        request_id = driver.add(prompt, max_tokens=0, prompt_logprobs=True)
        while not driver.deltas[request_id]:
            driver.step()
            if disturbed:
                vectors.append(driver.backend.embed(other))
        values.append(scores(driver, request_id))
    assert values[0] == values[1]
    assert len(vectors) > 2 and set(vectors) == {vectors[0]}
    driver.backend.close()


def test_when_its_graph_cannot_be_made_that_request_fails_alone(
    model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> None:
        raise MemoryError("no room")

    driver = load(model, deterministic=True)
    prompt = prompts(1, 20, seed=7)[0]
    with monkeypatch.context() as patch:
        patch.setattr(backend_module, "LogProbabilities", out_of_memory)
        failed, neighbour = driver.add(prompt, prompt_logprobs=True), driver.add(prompt)
        finish(driver)
    assert "could not read" in driver.end(failed)
    assert driver.tokens(neighbour) == reference.greedy(prompt, 8)[0]
    again = driver.add(prompt, max_tokens=0, prompt_logprobs=True)
    finish(driver)
    assert len(scores(driver, again)) == 20
    driver.backend.close()


def test_an_ir_folder_gives_them_too(model: Path, exact: Driver, tmp_path: Path) -> None:
    prompt = prompts(1, 40, seed=8)[0]
    with ir_folder(inspect_model(str(model))) as converted:
        folder = write_ir(tmp_path / "ir", TINY, converted)
    driver = load(folder, deterministic=True)
    ids = [each.add(prompt, max_tokens=0, prompt_logprobs=True) for each in (driver, exact)]
    finish(driver)
    finish(exact)
    assert scores(driver, ids[0]) == scores(exact, ids[1])
    driver.backend.close()
