"""Pages and steps of the transformers engine: nothing is shared that should not be, and everything comes to its end."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfleet.engines.base import GenerateRequest, SamplingParams
from chatfleet.engines.transformers.pages import SCRATCH_PAGE, PagePool
from chatfleet.engines.transformers.sampling import RowState
from chatfleet.engines.transformers.scheduler import Part, Running, Scheduler

PAGE_TOKENS = 4


def sequence(request_id: int, prompt: list[int], max_tokens: int, **sampling: bool) -> Running:
    params = SamplingParams(max_tokens=max_tokens, **sampling)
    request = GenerateRequest(request_id=request_id, prompt_token_ids=prompt, sampling=params)
    return Running(request, RowState(params, prompt, []), list(prompt))


class Machine:
    """Stands for the model: remembers what every slot of the cache holds, and generates the same tokens always."""

    def __init__(self, pages: int, **limits: int) -> None:
        self.pool = PagePool(pages, PAGE_TOKENS)
        self.scheduler = Scheduler(self.pool, **{"step_tokens": 16, "max_running": 8} | limits)
        self.held: dict[tuple[int, int], tuple[int, ...]] = {}
        """(page, place) to the text up to and with the token whose keys lie there."""
        self.answers: dict[int, list[int]] = {}

    def step(self) -> list[Part]:
        parts = self.scheduler.plan()
        self.check_pages()
        for part in parts:
            text = part.sequence.token_ids
            for position in range(part.start, part.end):
                page = part.sequence.pages[position // PAGE_TOKENS]
                self.held[page, position % PAGE_TOKENS] = tuple(text[: position + 1])
        for part in parts:  # all of the step writes before anybody reads
            for position in range(part.end):
                page = part.sequence.pages[position // PAGE_TOKENS]
                assert self.held[page, position % PAGE_TOKENS] == tuple(part.sequence.token_ids[: position + 1])
        self.scheduler.computed(parts)
        for part in parts:
            if part.is_last:
                self.generate(part.sequence)
        return parts

    def generate(self, running: Running) -> None:
        token_id = sum(running.token_ids) % 3
        running.token_ids.append(token_id)
        answer = self.answers.setdefault(running.request_id, [])
        answer.append(token_id)
        if len(running.token_ids) - running.prompt_tokens >= running.request.sampling.max_tokens:
            self.scheduler.remove(running.request_id)

    def check_pages(self) -> None:
        held = Counter(page for running in self.scheduler.running for page in running.pages)
        assert SCRATCH_PAGE not in held
        assert len(held) + self.pool.free == self.pool.pages - 1
        assert all(not running.pages for running in self.scheduler.waiting)


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=20)
arrivals = st.lists(st.tuples(prompts, st.integers(1, 12), st.integers(0, 3), st.booleans()), min_size=1, max_size=10)


@settings(deadline=None, max_examples=150)
@given(arrivals, st.integers(9, 24), st.integers(4, 16), st.data())
def test_every_request_ends_with_the_tokens_it_has_alone(
    requests: list[tuple[list[int], int, int, bool]], pages: int, step_tokens: int, data: st.DataObject
) -> None:
    machine = Machine(pages, step_tokens=step_tokens, max_running=6)
    cancelled = set()
    for number, (prompt, max_tokens, steps, prompt_logprobs) in enumerate(requests):
        machine.scheduler.add(sequence(number, prompt, max_tokens, prompt_logprobs=prompt_logprobs))
        for _ in range(steps):
            parts = machine.step()
            assert sum(part.end - part.start for part in parts) <= step_tokens
        if data.draw(st.booleans()) and machine.scheduler.remove(number) is not None:
            cancelled.add(number)
    for _ in range(2000):
        if not machine.scheduler.has_work:
            break
        assert machine.step(), "there is work, and a step does none of it"
    assert not machine.scheduler.has_work
    assert machine.pool.usage == 0
    for number, (prompt, max_tokens, _, _) in enumerate(requests):
        if number not in cancelled:
            text = list(prompt)
            for _ in range(max_tokens):
                text.append(sum(text) % 3)
            assert machine.answers[number] == text[len(prompt) :]


def test_answers_come_before_prompts() -> None:
    machine = Machine(100, step_tokens=8)
    machine.scheduler.add(sequence(1, [0] * 3, 20))
    machine.step()
    machine.scheduler.add(sequence(2, [1] * 30, 5))
    parts = machine.step()
    assert [(part.sequence.request_id, part.end - part.start) for part in parts] == [(1, 1), (2, 7)]


def test_a_step_that_reads_prompts_only_reads_more() -> None:
    machine = Machine(100, step_tokens=8, prompt_tokens=20)
    machine.scheduler.add(sequence(1, [0] * 30, 5))
    assert [part.end - part.start for part in machine.step()] == [20]


def test_the_youngest_gives_way_and_comes_back_first() -> None:
    machine = Machine(1 + 7, step_tokens=32)
    for number in (1, 2):
        machine.scheduler.add(sequence(number, [number] * 9, 12))
    machine.step()
    machine.scheduler.add(sequence(3, [0] * 20, 1))
    while not machine.scheduler.preemptions:
        assert machine.step()
    assert [running.request_id for running in machine.scheduler.running] == [1]
    assert [running.request_id for running in machine.scheduler.waiting] == [2, 3]


def test_pages_of_a_prompt_are_found_from_its_beginning_only() -> None:
    pool = PagePool(10, PAGE_TOKENS)
    pages = pool.take(2)
    prefix = pool.keep(pages[0], 0, [1, 2, 3, 4])
    pool.keep(pages[1], prefix, [5, 6, 7, 8])
    assert pool.match([1, 2, 3, 4, 5, 6, 7, 8, 9])[0] == pages
    assert pool.match([1, 2, 3, 4, 5, 6, 7, 8])[0] == pages[:1]  # the last token is computed for its logits
    assert pool.match([5, 6, 7, 8, 9])[0] == []
    assert pool.match([1, 2, 3])[0] == []


def test_pages_that_are_known_are_used_last_and_the_longest_unused_first() -> None:
    pool = PagePool(1 + 4, PAGE_TOKENS)
    first, second, third = pool.take(3)
    pool.keep(first, 0, [1] * 4)
    pool.keep(second, 0, [2] * 4)
    pool.give_back([first])
    pool.give_back([second])
    pool.give_back([third])
    taken = pool.take(3)
    assert third in taken and second not in taken and first in taken
    assert pool.match([1] * 5)[0] == []
    assert pool.match([2] * 5)[0] == [second]


def test_a_page_that_was_given_to_another_is_not_found_again() -> None:
    pool = PagePool(1 + 1, PAGE_TOKENS)
    page = pool.take(1)
    pool.keep(page[0], 0, [1] * 4)
    pool.give_back(page)
    assert pool.take(1) == page
    assert pool.match([1] * 5)[0] == []


def test_a_pool_needs_a_page_beside_the_scratch_page() -> None:
    with pytest.raises(ValueError, match="scratch"):
        PagePool(1, PAGE_TOKENS)
