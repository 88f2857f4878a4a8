"""The transformers engine's sampler: batched, against one row at a time in plain numpy."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfleet.engines.base import SamplingParams
from chatfleet.engines.transformers.sampling import (
    NOT_NUMBERS,
    NOTHING_LEFT,
    RowState,
    Sampled,
    Sampler,
    prompt_logprobs,
)

CPU = torch.device("cpu")
VOCABULARIES = (5, 64, 127, 128, 300, 1024)  # less than, as much as, and more than the blocks that work is done by
VOCABULARY = 300
Row = tuple[SamplingParams, list[int], list[int]]


def params(**sampling: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 100, **sampling})


def random_logits(seed: int, vocab_size: int = VOCABULARY, rows: int = 1) -> torch.Tensor:
    """Multiples of 1/8, so that every float type has them exactly and many tokens of a row are equals."""
    values = np.random.default_rng(seed).integers(-48, 48, size=(rows, vocab_size)) / 8
    return torch.from_numpy(values).float()


def sample(logits: torch.Tensor, rows: Sequence[Row]) -> Sampled:
    states = [RowState(sampling, prompt, output) for sampling, prompt, output in rows]
    return Sampler(logits.shape[-1], CPU).sample(logits, states)


def draws(logits: torch.Tensor, count: int, *, prompt: Sequence[int] = (), **sampling: Any) -> Counter[int]:
    """How often each token comes of one row of logits, over `count` seeds."""
    rows = [(params(**{"seed": seed, **sampling}), list(prompt), list[int]()) for seed in range(count)]
    sampled = sample(logits.expand(count, -1), rows)
    assert sampled.faults == [None] * count
    return Counter(sampled.token_ids)


def greedy(logits: torch.Tensor, *, prompt: Sequence[int] = (), output: Sequence[int] = (), **sampling: Any) -> int:
    [token_id] = sample(logits, [(params(temperature=0, **sampling), list(prompt), list(output))]).token_ids
    return token_id


def logits_of(values: dict[int, float], *, others: float = -20.0, vocab_size: int = VOCABULARY) -> torch.Tensor:
    logits = torch.full((1, vocab_size), others)
    for token_id, value in values.items():
        logits[0, token_id] = value
    return logits


# --- against a reference ---


class Expected(NamedTuple):
    likeliest: int
    possible: frozenset[int]
    logprobs: npt.NDArray[np.float64]


def reference(logits: npt.NDArray[np.float32], row: Row) -> Expected | None:
    """What one row may give, the naive way; None where nothing is left. Sums are given a tolerance of 1e-5."""
    sampling, prompt, output = row
    raw = logits.astype(np.float64)
    logprobs = raw - raw.max() - math.log(np.exp(raw - raw.max()).sum())
    logits = logits.copy()
    for token_id, bias in sampling.logit_bias.items():
        logits[token_id] += np.float32(bias)
    for word in sampling.bad_words_token_ids:
        if list(word[:-1]) == output[len(output) - len(word) + 1 :]:
            logits[word[-1]] = -np.inf
    if len(output) < sampling.min_tokens:
        logits[list(sampling.stop_token_ids)] = -np.inf
    for token_id in set(prompt) | set(output):
        factor = np.float32(sampling.repetition_penalty)
        logits[token_id] = logits[token_id] / factor if logits[token_id] > 0 else logits[token_id] * factor
    for token_id, count in Counter(output).items():
        penalty = np.float32(sampling.frequency_penalty) * np.float32(count) + np.float32(sampling.presence_penalty)
        logits[token_id] -= penalty
    if logits.max() == -np.inf:
        return None
    order = sorted(range(len(logits)), key=lambda token_id: (-logits[token_id], token_id))
    if sampling.temperature < 1e-5:
        return Expected(order[0], frozenset(order[:1]), logprobs)
    weights = np.exp((logits.astype(np.float64) - logits.max()) / sampling.temperature)
    kept = [token_id for token_id in order if weights[token_id] >= sampling.min_p * (1 - 1e-5)]
    kept = kept[: sampling.top_k] if sampling.top_k > 0 else kept
    total = sum(weights[token_id] for token_id in kept)
    possible, mass = set[int](), 0.0
    for token_id in kept:
        if possible and mass >= (sampling.top_p + 1e-5) * total:
            break
        possible.add(token_id)
        mass += weights[token_id]
    return Expected(order[0], frozenset(possible), logprobs)


@st.composite
def rows_of(draw: st.DrawFn, vocab_size: int) -> Row:
    token_ids = st.integers(0, vocab_size - 1)
    words = st.lists(token_ids, min_size=1, max_size=3).map(tuple)
    sampling = draw(
        st.fixed_dictionaries(
            {"seed": st.integers(-(2**63), 2**63 - 1), "temperature": st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0])},
            optional={
                "top_p": st.floats(0.01, 1),
                "top_k": st.integers(0, vocab_size + 5),
                "min_p": st.floats(0, 1),
                "frequency_penalty": st.floats(-2, 2),
                "presence_penalty": st.floats(-2, 2),
                "repetition_penalty": st.floats(0.5, 2),
                "min_tokens": st.integers(0, 8),
                "stop_token_ids": st.lists(token_ids, max_size=3).map(tuple),
                "logit_bias": st.dictionaries(token_ids, st.floats(-100, 100, width=32), max_size=4),
                "bad_words_token_ids": st.lists(words, max_size=4).map(tuple),
                "logprobs": st.integers(0, 20),
            },
        )
    )
    tokens = st.lists(token_ids, max_size=6)
    return params(**sampling), draw(tokens), draw(tokens)


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    vocab_size=st.sampled_from(VOCABULARIES),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_each_row_is_as_it_would_be_computed_alone_and_naively(
    data: st.DataObject, vocab_size: int, seed: int, dtype: torch.dtype
) -> None:
    rows = data.draw(st.lists(rows_of(vocab_size), min_size=1, max_size=8))
    logits = random_logits(seed, vocab_size, len(rows))
    sampled = sample(logits.to(dtype), rows)
    for index, row in enumerate(rows):
        expected = reference(logits[index].numpy(), row)
        if expected is None:
            assert sampled.faults[index] == NOTHING_LEFT and sampled.logprobs[index] is None
            continue
        token_id, sampling = sampled.token_ids[index], row[0]
        assert sampled.faults[index] is None and token_id in expected.possible
        logprobs = sampled.logprobs[index]
        assert (logprobs is None) == (sampling.logprobs is None)
        if logprobs is not None:
            assert logprobs.token_id == token_id
            assert logprobs.logprob == pytest.approx(expected.logprobs[token_id], abs=1e-5)
            values = logits[index].tolist()
            best = sorted(range(vocab_size), key=lambda token_id: (-values[token_id], token_id))
            assert [token_id for token_id, _ in logprobs.top] == best[: sampling.logprobs]
            for token_id, value in logprobs.top:
                assert value == pytest.approx(expected.logprobs[token_id], abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), vocab_size=st.sampled_from(VOCABULARIES), seed=st.integers(0, 2**32))
def test_a_row_does_not_depend_on_the_batch_or_its_place_there(data: st.DataObject, vocab_size: int, seed: int) -> None:
    rows = data.draw(st.lists(rows_of(vocab_size), min_size=2, max_size=8))
    order = data.draw(st.permutations(range(len(rows))))
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (len(rows), vocab_size))).float()
    together = sample(logits, rows)
    turned = sample(logits[order], [rows[index] for index in order])
    for place, index in enumerate(order):
        [alone] = zip(*sample(logits[index : index + 1], [rows[index]]), strict=True)
        assert alone == tuple(column[index] for column in together) == tuple(column[place] for column in turned)


@pytest.mark.long
@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_an_answer_goes_on_from_its_tokens_as_if_it_had_not_stopped(data: st.DataObject, seed: int) -> None:
    sampling, prompt, output = data.draw(rows_of(VOCABULARY))
    logits = random_logits(seed, rows=12)
    sampler, state, token_ids = Sampler(VOCABULARY, CPU), RowState(sampling, prompt, output), list(output)
    for position in range(12):
        resumed = RowState(sampling, prompt, token_ids)
        ways = sampler.sample(logits[[position, position]], [state, resumed])
        assert ways.token_ids[0] == ways.token_ids[1] and ways.faults[0] == ways.faults[1]
        state.append(ways.token_ids[0])
        token_ids.append(ways.token_ids[0])


def test_many_rows_are_worked_on_in_chunks_and_come_back_in_order() -> None:
    vocab_size = 152064
    best = [7 * index for index in range(70)]
    logits = torch.zeros(70, vocab_size)
    logits[torch.arange(70), torch.tensor(best)] = 50.0
    rows = [(params(seed=1, temperature=index % 2, logprobs=1 if index % 3 else None), [], []) for index in range(70)]
    sampled = sample(logits, rows)
    assert sampled.token_ids == best
    assert [logprobs is not None for logprobs in sampled.logprobs] == [index % 3 != 0 for index in range(70)]


def test_no_rows_are_no_tokens() -> None:
    assert Sampler(VOCABULARY, CPU).sample(torch.zeros(0, VOCABULARY), []) == ([], [], [])


def test_the_logits_are_left_as_they_were() -> None:
    logits = random_logits(1, rows=3)
    before = logits.clone()
    settings = ({"repetition_penalty": 2.0}, {"top_p": 0.5}, {"min_p": 0.5, "logit_bias": {3: 5.0}})
    sample(logits, [(params(seed=1, **row), [1, 2], [3]) for row in settings])
    assert torch.equal(logits, before)


# --- distributions ---


def assert_distributed(counts: Counter[int], expected: dict[int, float]) -> None:
    """Chi-squared under what 1 in 10**6 runs exceed (by Wilson and Hilferty); seeds are fixed, so it is always so."""
    total = sum(counts.values())
    assert set(counts) <= set(expected)
    weight = sum(expected.values())
    statistic = sum(
        (counts[token_id] - total * part / weight) ** 2 / (total * part / weight) for token_id, part in expected.items()
    )
    freedom = max(1, len(expected) - 1)
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3


WEIGHTS = {3: 40.0, 120: 20.0, 127: 15.0, 128: 10.0, 200: 8.0, 299: 5.0, 0: 2.0}
TEN = logits_of({token_id: math.log(weight) for token_id, weight in WEIGHTS.items()}, others=-math.inf)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({}, WEIGHTS),
        ({"temperature": 0.5}, {token_id: weight**2 for token_id, weight in WEIGHTS.items()}),
        ({"temperature": 3.0}, {token_id: weight ** (1 / 3) for token_id, weight in WEIGHTS.items()}),
        ({"top_k": 3}, {3: 40, 120: 20, 127: 15}),
        ({"top_k": 65}, WEIGHTS),
        ({"top_k": 300}, WEIGHTS),
        ({"top_p": 0.59}, {3: 40, 120: 20}),
        ({"top_p": 0.61}, {3: 40, 120: 20, 127: 15}),
        ({"min_p": 0.26}, {3: 40, 120: 20, 127: 15}),
        ({"min_p": 0.24}, {3: 40, 120: 20, 127: 15, 128: 10}),
        ({"top_k": 4, "top_p": 0.7}, {3: 40, 120: 20}),  # 60 of the 85 that top_k leaves
        ({"top_k": 4, "top_p": 0.72}, {3: 40, 120: 20, 127: 15}),
        ({"top_k": 100, "top_p": 0.74}, {3: 40, 120: 20, 127: 15}),
        ({"min_p": 0.24, "top_p": 0.7}, {3: 40, 120: 20}),  # min_p goes first: 60 of 85
        ({"min_p": 0.24, "top_p": 0.72}, {3: 40, 120: 20, 127: 15}),
        ({"min_p": 0.26, "top_k": 4}, {3: 40, 120: 20, 127: 15}),
        ({"temperature": 0.5, "top_p": 0.64}, {3: 1600}),  # of the tempered distribution: 1600 of 2418
        ({"logit_bias": {120: math.log(3)}, "top_k": 2}, {3: 40, 120: 60}),
        ({"logit_bias": {120: -math.inf}, "top_p": 0.6}, {3: 40, 127: 15}),
    ],
)
def test_tokens_come_as_often_as_the_distribution_says(sampling: dict[str, Any], kept: dict[int, float]) -> None:
    counts = draws(TEN, 4000, **sampling)
    assert_distributed(counts, kept)
    assert set(counts) == set(kept)


def test_a_wide_distribution_is_drawn_from_as_a_whole() -> None:
    """The nucleus is of more tokens than are tried without sorting, and `top_k` of more than are chosen unsorted."""
    values = {token_id: 1.0 + token_id / 300 for token_id in range(300)}
    logits = logits_of({token_id: math.log(weight) for token_id, weight in values.items()})
    assert_distributed(draws(logits, 6000), values)
    order = sorted(values, key=lambda token_id: -values[token_id])
    assert_distributed(draws(logits, 6000, top_k=100), {token_id: values[token_id] for token_id in order[:100]})
    for top_k, top_p in ((0, 0.8), (100, 0.8), (64, 0.5)):
        among = order[:top_k] if top_k else order
        total, nucleus = sum(values[token_id] for token_id in among), dict[int, float]()
        while sum(nucleus.values()) < top_p * total:
            nucleus[among[len(nucleus)]] = values[among[len(nucleus)]]
        assert_distributed(draws(logits, 6000, top_k=top_k, top_p=top_p), nucleus)


def test_top_p_is_of_what_a_large_top_k_leaves() -> None:
    """Of all 300 tokens it would be 24, which are few enough to be found without sorting."""
    values = {3: 40.0, 120: 20.0, 127: 15.0}
    logits = logits_of({token_id: math.log(weight) for token_id, weight in values.items()}, others=math.log(0.15))
    assert set(draws(logits, 500, top_p=0.66)) > {3, 120, 127}
    assert set(draws(logits, 500, top_p=0.66, top_k=70)) == {3, 120}


def test_of_equals_the_lowest_ids_are_kept() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 1] = -0.0
    assert greedy(logits) == 0
    assert set(draws(logits, 200, top_k=3)) == {0, 1, 2}
    assert set(draws(logits, 3000, top_k=70)) == set(range(70))
    assert set(draws(logits, 3000, top_p=0.1)) == set(range(30))
    assert set(draws(logits, 3000, top_p=0.3)) == set(range(90))
    [(_, [entry], _)] = [sample(logits, [(params(temperature=0, logprobs=4), [], [])])]
    assert entry is not None and [token_id for token_id, _ in entry.top] == [0, 1, 2, 3]


def test_successive_draws_of_a_seed_and_the_same_draws_of_neighbouring_seeds_are_unrelated() -> None:
    """Pairs of draws from four equal tokens are the sixteen pairs equally often."""
    logits = logits_of(dict.fromkeys((1, 100, 200, 299), 5.0), others=-math.inf)
    sampler = Sampler(VOCABULARY, CPU)

    def sequence(places: Sequence[tuple[int, int]]) -> list[int]:
        rows = [RowState(params(seed=seed), [], [0] * position) for seed, position in places]
        return sampler.sample(logits.expand(len(rows), -1), rows).token_ids

    pairs = {first * 1000 + second: 1.0 for first in (1, 100, 200, 299) for second in (1, 100, 200, 299)}
    for places in ([(7, position) for position in range(2000)], [(seed, 3) for seed in range(2000)]):
        token_ids = sequence(places)
        seen = Counter(first * 1000 + second for first, second in zip(token_ids[::2], token_ids[1::2], strict=True))
        assert_distributed(seen, pairs)


def test_without_a_seed_answers_differ_and_with_one_they_do_not() -> None:
    logits = torch.zeros(200, VOCABULARY)
    assert len(set(sample(logits, [(params(), [], [])] * 200).token_ids)) > 50
    assert len(set(sample(logits, [(params(seed=5), [], [])] * 200).token_ids)) == 1
    assert len(draws(logits[:1], 200)) > 50


def test_a_tiny_temperature_is_greedy_and_a_small_one_is_not_an_overflow() -> None:
    logits = logits_of({5: 3.0, 6: 2.9})
    assert set(draws(logits, 50, temperature=1e-6)) == set(draws(logits, 50, temperature=1e-4)) == {5}
    assert set(draws(logits, 50, temperature=1e5)) != {5}


# --- what changes logits ---


def test_a_bias_is_added_to_the_logit() -> None:
    logits = logits_of({5: 3.0, 6: 2.0})
    assert greedy(logits) == greedy(logits, logit_bias={6: 0.9}) == 5
    assert greedy(logits, logit_bias={6: 1.1}) == greedy(logits, logit_bias={5: -1.1}) == 6


def test_stop_tokens_are_forbidden_until_min_tokens_are_there() -> None:
    logits = logits_of({5: 9.0, 6: 8.0, 7: 7.0})
    for given_tokens, expected in ((0, 7), (1, 7), (2, 5)):
        assert greedy(logits, output=[9] * given_tokens, min_tokens=2, stop_token_ids=(5, 6)) == expected
    assert set(draws(logits, 50, min_tokens=1, stop_token_ids=(5, 6), top_k=1)) == {7}


def test_a_bad_word_of_one_token_never_comes() -> None:
    logits = logits_of({5: 9.0, 6: 8.0})
    assert greedy(logits, bad_words_token_ids=((5,),)) == 6
    assert greedy(logits, output=[1, 2, 3], bad_words_token_ids=((5,), (6,)), logit_bias={8: 1.0}) == 8


def test_a_bad_word_of_several_tokens_is_not_completed() -> None:
    logits = logits_of({5: 9.0, 6: 8.0})
    words = ((1, 2, 5), (3, 5))
    assert [greedy(logits, output=output, bad_words_token_ids=words) for output in ([1, 2], [9, 1, 2], [3])] == [6] * 3
    for output in ([], [1], [2], [2, 1], [1, 2, 9], [3, 9]):
        assert greedy(logits, output=output, bad_words_token_ids=words) == 5
    assert greedy(logits, prompt=[1, 2], bad_words_token_ids=words) == 5  # what the prompt says is no part of the word


def test_a_bad_word_is_seen_as_its_tokens_are_appended() -> None:
    state = RowState(params(temperature=0, bad_words_token_ids=((1, 2, 5),)), [], [])
    chosen = []
    for token_id in (1, 2, 9):
        state.append(token_id)
        chosen += Sampler(VOCABULARY, CPU).sample(logits_of({5: 9.0, 6: 8.0}), [state]).token_ids
    assert chosen == [5, 6, 5]


def test_repetition_is_penalised_in_prompt_and_answer_by_sign() -> None:
    positive, negative = logits_of({5: 3.0, 6: 2.0}), logits_of({5: -2.0, 6: -3.0})
    assert greedy(positive, repetition_penalty=1.6) == greedy(negative, repetition_penalty=1.6) == 5
    for said in ({"prompt": [5]}, {"output": [5]}, {"prompt": [5, 5], "output": [5]}):
        assert greedy(positive, repetition_penalty=1.6, **said) == greedy(negative, repetition_penalty=1.6, **said) == 6
        assert greedy(positive, repetition_penalty=1.4, **said) == greedy(negative, repetition_penalty=1.4, **said) == 5


def test_presence_counts_once_and_frequency_each_time_and_only_in_the_answer() -> None:
    logits = logits_of({5: 3.0, 6: 2.0})
    assert greedy(logits, output=[5, 5, 5], presence_penalty=0.9) == 5
    assert greedy(logits, output=[5], presence_penalty=1.1) == 6
    assert greedy(logits, output=[5, 5], frequency_penalty=0.4) == 5
    assert greedy(logits, output=[5, 5, 5], frequency_penalty=0.4) == 6
    for repetition_penalty in (1.0, 1.1):
        penalties = {"presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": repetition_penalty}
        assert greedy(logits, prompt=[5] * 9, **penalties) == 5


def test_counts_grow_with_a_long_answer() -> None:
    state = RowState(params(temperature=0, frequency_penalty=0.5), [], [])
    sampler, logits = Sampler(VOCABULARY, CPU), torch.zeros(1, VOCABULARY)
    token_ids = []
    for _ in range(2 * VOCABULARY + 1):
        [token_id] = sampler.sample(logits, [state]).token_ids
        state.append(token_id)
        token_ids.append(token_id)
    assert token_ids == [*range(VOCABULARY), *range(VOCABULARY), 0]


def test_ids_that_the_model_does_not_have_change_nothing() -> None:
    logits = random_logits(4, rows=2)
    outside = {"stop_token_ids": (-1, 300, 9999), "min_tokens": 5, "logit_bias": {300: 100.0, -3: 100.0}}
    outside |= {"bad_words_token_ids": ((301,), (-2,)), "repetition_penalty": 1.5, "frequency_penalty": 1.0}
    row: Row = params(temperature=0, **outside), [400, -200], [500]
    plain: Row = params(temperature=0), [], []
    assert sample(logits, [row, row]).token_ids == sample(logits, [plain, plain]).token_ids


# --- faults ---


BROKEN = {
    "all NaN": torch.full((VOCABULARY,), math.nan),
    "one NaN": torch.zeros(VOCABULARY).index_fill(0, torch.tensor([7]), math.nan),
    "nothing possible": torch.full((VOCABULARY,), -math.inf),
    "infinite": torch.zeros(VOCABULARY).index_fill(0, torch.tensor([7]), math.inf),
}
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0, "logprobs": 5},
    {},
    {"top_k": 5},
    {"top_k": 90},
    {"top_p": 0.5},
    {"top_p": 0.5, "top_k": 5, "min_p": 0.1, "logprobs": 2},
    {"min_p": 0.5},
    {"repetition_penalty": 1.5, "logit_bias": {7: 1.0}},
)


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("sampling", KINDS, ids=str)
def test_a_row_that_is_not_numbers_fails_alone(broken: str, sampling: dict[str, Any]) -> None:
    rows = [(params(**{"seed": 3, **sampling}), [1, 2], [3])] * 3
    logits = random_logits(2, rows=3)
    healthy = sample(logits, rows)
    logits[1] = BROKEN[broken]
    sampled = sample(logits, rows)
    assert sampled.faults == [None, NOT_NUMBERS, None]
    assert (sampled.token_ids[1], sampled.logprobs[1]) == (0, None)
    for index in (0, 2):
        assert sampled.token_ids[index] == healthy.token_ids[index]
        assert sampled.logprobs[index] == healthy.logprobs[index]


@pytest.mark.parametrize("sampling", KINDS, ids=str)
def test_a_request_that_forbids_every_token_fails_alone(sampling: dict[str, Any]) -> None:
    every = tuple((token_id,) for token_id in range(VOCABULARY))
    rows: list[Row] = [
        (params(seed=3, bad_words_token_ids=every) if index == 1 else params(seed=3), [], []) for index in range(3)
    ]
    rows[1] = (params(**{"seed": 3, "bad_words_token_ids": every, **sampling}), [], [])
    sampled = sample(random_logits(2, rows=3), rows)
    assert sampled.faults == [None, NOTHING_LEFT, None] and sampled.logprobs[1] is None


def test_a_token_with_no_chance_is_never_drawn() -> None:
    logits = torch.full((1, 1024), -math.inf)
    logits[0, [130, 131]] = torch.tensor([0.0, -30.0])
    for sampling in KINDS[2:8]:
        assert set(draws(logits, 500, **sampling)) <= {130, 131}


# --- log probabilities ---


def test_log_probabilities_are_of_the_model_and_not_of_what_the_request_makes_of_it() -> None:
    logits = random_logits(9)
    expected = torch.log_softmax(logits[0], dim=-1)
    sampling = params(temperature=0.2, seed=1, top_k=1, logit_bias={8: 100.0}, frequency_penalty=2.0, logprobs=3)
    [entry] = sample(logits, [(sampling, [], [1, 1])]).logprobs
    assert entry is not None and entry.token_id == 8
    assert entry.logprob == pytest.approx(expected[8].item(), abs=1e-6)
    assert [value for _, value in entry.top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-6)


def test_each_row_has_as_many_alternatives_as_it_asks_for() -> None:
    rows = [(params(temperature=0, logprobs=count), list[int](), list[int]()) for count in (None, 0, 20, 3, None)]
    logprobs = sample(random_logits(9, rows=5), rows).logprobs
    assert [None if entry is None else len(entry.top) for entry in logprobs] == [None, 0, 20, 3, None]


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    [entry] = sample(random_logits(9, 5), [(params(temperature=0, logprobs=20), [], [])]).logprobs
    assert entry is not None and sorted(token_id for token_id, _ in entry.top) == [0, 1, 2, 3, 4]
    assert sum(math.exp(value) for _, value in entry.top) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("count", "vocab_size"), [(7, VOCABULARY), (60, 151936)])
def test_prompt_log_probabilities_are_those_of_every_position(count: int, vocab_size: int, dtype: torch.dtype) -> None:
    logits = random_logits(3, vocab_size, count).to(dtype)
    token_ids = [(31 * position) % vocab_size for position in range(count)]
    expected = torch.log_softmax(logits.float(), dim=-1)
    entries = prompt_logprobs(logits, token_ids, 2)
    assert [entry.token_id for entry in entries] == token_ids
    for position, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(expected[position, token_ids[position]].item(), abs=1e-5)
        assert [value for _, value in entry.top] == pytest.approx(expected[position].topk(2).values.tolist(), abs=1e-5)
    assert [entry.top for entry in prompt_logprobs(logits, token_ids, 0)] == [[]] * count
