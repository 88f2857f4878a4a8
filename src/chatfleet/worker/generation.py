"""Running the choices of a request: permits, engine streams, text, all in one owned object."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from chatfleet.chat.text import IncrementalText, Logprob, TextDelta, TextRules, TokenText
from chatfleet.chat.tokenizer import Tokenizer
from chatfleet.core.errors import InvalidRequest
from chatfleet.engines.base import Engine, FinishReason, SamplingParams, TokenDelta, TokenLogprobs
from chatfleet.worker.admission import Admission, Permit
from chatfleet.worker.metrics import RequestMeter
from chatfleet.worker.recovery import Replay
from chatfleet.worker.structure import Constraint

# Choices over one prompt start together, except behind a prompt of this many tokens: there the first
# choice fills the prefix cache and the others wait for its first token, which saves their prefill.
SHARED_PREFIX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Job:
    """One choice to generate. `index` is its place in the response, `prompt` that of its prompt; `replay`, where
    there is one, is what was delivered of it by another worker."""

    index: int
    prompt: int
    prompt_token_ids: list[int]
    sampling: SamplingParams
    replay: Replay | None = None

    @property
    def is_over(self) -> bool:
        return self.replay is not None and self.replay.finish_reason is not None


@dataclass(slots=True)
class ChoiceDelta:
    """What is new of one choice. `prompt_logprobs` come once, where they were asked for.

    `token_ids` are all that count, whether they show or not, and `held` the tokens so far that have to show yet with
    their log probabilities. `pieces` are the text, token by token, and `unfinished` tells how many tokens at the end
    are part of a character only, where the rules of the text want these known.
    """

    index: int
    text: str
    tokens: list[TokenText] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    token_ids: Sequence[int] = ()
    held: Sequence[TokenText] = ()
    pieces: Sequence[str] = ()
    unfinished: int = 0


class Generation:
    """All choices of one request, their deltas interleaved as they come.

    Made inside the request: permits are reserved at once (QueueFull), slots taken as they free up.
    `aclose` is idempotent; it cancels what still runs and gives back every permit, so call it on success,
    error and disconnect alike. Choices that another worker has begun go on behind what it delivered of them, which
    counts as completion; those that are over need no permit.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        engine: Engine,
        admission: Admission,
        tokenizer: Tokenizer,
        rules: TextRules,
        meter: RequestMeter,
        constraint: Constraint | None = None,
        priority: int = 0,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._rules = rules
        self._meter = meter
        self._constraint = constraint
        to_run = [job for job in jobs if not job.is_over]
        self._permits = admission.reserve(len(to_run), priority=priority) if to_run else []
        self._warm = {job.prompt: asyncio.Event() for job in jobs}
        self.prompt_tokens = sum({job.prompt: len(job.prompt_token_ids) for job in jobs}.values())
        self.completion_tokens = sum(len(job.replay.token_ids) for job in jobs if job.replay is not None)
        self.cached_tokens: int | None = None
        """Of the prompts, those that the prefix cache held; None where the engine does not tell."""
        self.replays = {job.index: job.replay for job in jobs if job.replay is not None}
        leaders: set[int] = set()
        runs = [_ending(job.index, job.replay) for job in jobs if job.replay is not None and job.is_over]
        for job, permit in zip(to_run, self._permits, strict=True):
            runs.append(self._run(job, permit, leads=job.prompt not in leaders))
            leaders.add(job.prompt)
        self._deltas = interleave(runs)

    def __aiter__(self) -> AsyncGenerator[ChoiceDelta, None]:
        return self._deltas

    async def aclose(self) -> None:
        await self._deltas.aclose()
        for permit in self._permits:
            permit.release()

    async def _run(self, job: Job, permit: Permit, *, leads: bool) -> AsyncGenerator[ChoiceDelta, None]:
        warm = self._warm[job.prompt]
        with self._meter.choice(len(job.prompt_token_ids), leads=leads) as meter:
            if not leads and len(job.prompt_token_ids) >= SHARED_PREFIX_TOKENS:
                await warm.wait()
            text = IncrementalText(self._tokenizer, self._rules) if job.replay is None else job.replay.text
            output_token_ids = () if job.replay is None else job.replay.token_ids
            try:
                async with permit:
                    meter.has_slot()
                    stream = self._engine.generate(job.prompt_token_ids, job.sampling, output_token_ids)
                    async with aclosing(stream):
                        async for delta in stream:
                            warm.set()
                            choice = _choice_delta(job, text, delta, self._rules)
                            used_tokens = len(choice.token_ids)
                            meter.delta(used_tokens, delta.cached_tokens, choice.finish_reason)
                            self.completion_tokens += used_tokens
                            if leads and delta.cached_tokens is not None:
                                self.cached_tokens = (self.cached_tokens or 0) + delta.cached_tokens
                            yield choice
                            if choice.finish_reason is not None:
                                return
            except InvalidRequest as exc:
                if exc.param == "grammar" and self._constraint is not None:  # what engines call it
                    raise InvalidRequest(str(exc), param=self._constraint.param) from exc
                raise
            finally:
                warm.set()


async def _ending(index: int, replay: Replay) -> AsyncGenerator[ChoiceDelta, None]:
    """What is left of a choice that is over."""
    if not replay.is_done:
        yield ChoiceDelta(index, "", finish_reason=replay.finish_reason)


def _choice_delta(job: Job, text: IncrementalText, delta: TokenDelta, rules: TextRules) -> ChoiceDelta:
    """What to show, and which tokens count: those behind a stop string do not, however deltas were merged.

    A stop token counts but does not show unless the rules say so, be it marked special or not.
    """
    logprobs = None
    if delta.logprobs is not None:
        logprobs = [Logprob(entry.logprob, entry.top) for entry in delta.logprobs]
    token_ids = delta.token_ids
    ends_at_token = delta.finish_reason == "stop" and token_ids and token_ids[-1] in job.sampling.stop_token_ids
    if ends_at_token and not rules.shows_stop:
        token_ids = token_ids[:-1]
    used_token_ids = delta.token_ids
    shown = TextDelta()
    size = 1 if rules.stops or rules.by_token else max(len(token_ids), 1)
    pieces: list[str] = []
    for start in range(0, len(token_ids), size):
        end = start + size
        part = text.feed(token_ids[start:end], None if logprobs is None else logprobs[start:end])
        shown = TextDelta(shown.text + part.text, shown.tokens + part.tokens, part.stopped)
        pieces.append(part.text)
        if part.stopped:
            used_token_ids = delta.token_ids[:end]
            break
    finish_reason = delta.finish_reason
    if not shown.stopped and finish_reason is not None:
        rest = text.finish()
        shown = TextDelta(shown.text + rest.text, shown.tokens + rest.tokens, rest.stopped)
        pieces.append(rest.text)
    if shown.stopped:
        finish_reason = "stop"
    held = () if logprobs is None else text.held_tokens()
    return ChoiceDelta(
        job.index,
        shown.text,
        shown.tokens,
        finish_reason,
        delta.prompt_logprobs,
        used_token_ids,
        held,
        pieces if rules.by_token else (),
        0 if finish_reason is not None else text.unfinished_tokens,
    )


T = TypeVar("T")


async def interleave(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Items of all streams as they come; the first error ends it. Closing it closes every stream."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield item
        return
    queue: asyncio.Queue[T | Exception | None] = asyncio.Queue(maxsize=2 * len(streams))
    tasks = [asyncio.create_task(_pump(stream, queue)) for stream in streams]
    try:
        running = len(tasks)
        while running:
            received = await queue.get()
            if received is None:
                running -= 1
            elif isinstance(received, Exception):
                raise received
            else:
                yield received
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(stream: AsyncGenerator[T, None], queue: "asyncio.Queue[T | Exception | None]") -> None:
    try:
        async with aclosing(stream):
            async for item in stream:
                await queue.put(item)
        await queue.put(None)
    except Exception as exc:
        await queue.put(exc)
