"""What each step computes. Pure: decides over sequences and pages, and touches no tensor.

Every step has a budget of tokens. Sequences that generate come first with one token each; what is left of the budget
reads prompts, in parts. While nobody generates the budget is larger: nobody waits for a token then, and long parts are
read faster. A sequence that needs a page when none is free takes one from the youngest, which loses all of
its pages and is computed again later (its full pages stay known as long as nobody needs them, so that is often cheap).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from chatfleet.engines.base import GenerateRequest, TokenLogprobs
from chatfleet.engines.transformers.pages import PagePool
from chatfleet.engines.transformers.sampling import RowState


@dataclass(eq=False)
class Running:
    """A request in the engine. `token_ids` are prompt and answer so far, of which `computed` are in the KV cache."""

    request: GenerateRequest
    row: RowState
    token_ids: list[int]
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    kept_pages: int = 0
    """How many of them the pool knows the content of, up to the prefix `prefix`."""
    prefix: int = 0
    cached_tokens: int | None = None
    """Prompt tokens that the cache held when it was first admitted."""
    has_begun: bool = False
    """Whether its first delta has gone out."""
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)

    @property
    def request_id(self) -> int:
        return self.request.request_id

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def left(self) -> int:
        return len(self.token_ids) - self.computed


class Part(NamedTuple):
    """Tokens `start` to `end` of a sequence, to be computed in a step."""

    sequence: Running
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        """Whether the next token can be drawn behind it."""
        return self.end == len(self.sequence.token_ids)


class Scheduler:
    """The sequences of an engine, the waiting ones in order of arrival.

    At most `max_running` are computed beside each other, at most `step_tokens` tokens a step, or `prompt_tokens` in one
    that reads prompts only. `whole_prompts` is for
    models whose state cannot be carried from one part of a prompt to the next: theirs are not cut, whatever the budget.
    Without `shares_pages` they only count tokens: what a sequence has computed is nobody else's.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        step_tokens: int,
        max_running: int,
        prompt_tokens: int | None = None,
        whole_prompts: bool = False,
        shares_pages: bool = True,
    ) -> None:
        self._shares_pages = shares_pages
        self.pool = pool
        self._prompt_tokens = prompt_tokens or step_tokens
        self.step_tokens = step_tokens
        self._max_running = min(max_running, step_tokens)
        self._whole_prompts = whole_prompts
        self.waiting: deque[Running] = deque()
        self.running: list[Running] = []
        self.preemptions = 0

    def add(self, sequence: Running) -> None:
        self.waiting.append(sequence)

    def remove(self, request_id: int) -> Running | None:
        """Take a sequence out, its pages given back. None for one that is not here."""
        for sequence in self.running:
            if sequence.request_id == request_id:
                self.running.remove(sequence)
                self._release(sequence)
                return sequence
        for sequence in self.waiting:
            if sequence.request_id == request_id:
                self.waiting.remove(sequence)
                return sequence
        return None

    def clear(self) -> None:
        self.waiting.clear()
        self.running.clear()
        self.pool.forget_all()

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def plan(self) -> list[Part]:
        """The parts of the next step, at most one of each sequence. Empty only when there is nothing to do."""
        parts = list(self._decoding_parts())
        budget = self.step_tokens - len(parts) if parts else self._prompt_tokens
        for sequence in self.running:
            if sequence.left > 1 and budget > 0:
                parts.append(self._prompt_part(sequence, budget))
                budget -= parts[-1].end - parts[-1].start
        while budget > 0 and self.waiting and self._admit(self.waiting[0]):
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            parts.append(self._prompt_part(sequence, budget))
            budget -= parts[-1].end - parts[-1].start
        return parts

    def computed(self, parts: Sequence[Part]) -> None:
        """The step of `parts` is done: their tokens are in the cache, and full pages can be shared."""
        for sequence, _, end in parts:
            sequence.computed = end
            if sequence.request.sampling.prompt_logprobs or not self._shares_pages:
                continue  # with the former it computed what others may have in the cache already
            size = self.pool.page_tokens
            while (sequence.kept_pages + 1) * size <= end:
                start = sequence.kept_pages * size
                tokens = sequence.token_ids[start : start + size]
                sequence.prefix = self.pool.keep(sequence.pages[sequence.kept_pages], sequence.prefix, tokens)
                sequence.kept_pages += 1

    def make_room(self, pages: int) -> list[int]:
        """Preempt the youngest until `pages` are free, of which there are as many. Returns the ids of those."""
        preempted = []
        while self.pool.free < pages and self.running:
            preempted.append(self.running[-1].request_id)
            self._preempt(self.running[-1])
        return preempted

    def _decoding_parts(self) -> Iterator[Part]:
        for sequence in list(self.running):
            if sequence.left != 1 or not sequence.pages:  # preempted meanwhile
                continue
            end = len(sequence.token_ids)
            missing = self.pool.pages_for(end) - len(sequence.pages)
            while self.pool.free < missing and sequence.pages:
                self._preempt(self.running[-1])
            if sequence.pages:
                sequence.pages += self.pool.take(missing)
                yield Part(sequence, end - 1, end)

    def _prompt_part(self, sequence: Running, budget: int) -> Part:
        end = len(sequence.token_ids)
        if not self._whole_prompts:
            end = min(end, sequence.computed + budget)
        return Part(sequence, sequence.computed, end)

    def _admit(self, sequence: Running) -> bool:
        """Give it pages for all of its tokens, those that hold some of them already first."""
        if len(self.running) >= self._max_running:
            return False
        needed = self.pool.pages_for(len(sequence.token_ids))
        # Room to grow for those that run, or they would soon take these pages back.
        reserve = len(self.running)
        if sequence.request.sampling.prompt_logprobs or not self._shares_pages:
            held, prefix = list[int](), 0
        else:
            held, prefix = self.pool.match(sequence.token_ids)
        if needed - len(held) + reserve > self.pool.free:
            self.pool.give_back(held)
            return False
        sequence.pages = held + self.pool.take(needed - len(held))
        sequence.kept_pages, sequence.prefix = len(held), prefix
        sequence.computed = len(held) * self.pool.page_tokens
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(sequence.computed, sequence.prompt_tokens)
        return True

    def _preempt(self, sequence: Running) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.prompt_logprobs.clear()  # its prompt is read again
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _release(self, sequence: Running) -> None:
        self.pool.give_back(sequence.pages)
        sequence.pages = []
        sequence.computed = sequence.kept_pages = sequence.prefix = 0
