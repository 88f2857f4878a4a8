"""An engine under test: answers held against what the interface promises, refusals against what it declares."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from chatfleet.core.errors import InvalidRequest, UnsupportedParameter
from chatfleet.engines.base import Capabilities, FinishReason, SamplingParams, TokenDelta, TokenLogprobs
from chatfleet.engines.process import ProcessEngine
from conformance.targets import Loadable, chat_prompt
from support.wire import PATIENCE_S


@dataclass
class Answer:
    """What came of one choice. `take` fails for a delta that the interface does not allow."""

    sampling: SamplingParams
    begun: Sequence[int] = ()
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    deltas: int = 0

    def take(self, delta: TokenDelta) -> None:
        assert self.finish_reason is None, "a delta behind the end"
        assert delta.token_ids or delta.finish_reason, "a delta with nothing in it"
        assert delta.fault is None, "a fault is an error of the stream"
        assert self.deltas == 0 or (delta.prompt_logprobs, delta.cached_tokens) == (None, None)
        if self.sampling.logprobs is None:
            assert delta.logprobs is None, "log probabilities that nobody asked for"
        elif delta.token_ids:
            assert delta.logprobs is not None and [entry.token_id for entry in delta.logprobs] == delta.token_ids
            self.logprobs += delta.logprobs
        self.token_ids += delta.token_ids
        if self.deltas == 0:
            self.prompt_logprobs, self.cached_tokens = delta.prompt_logprobs, delta.cached_tokens
        self.finish_reason = delta.finish_reason
        self.deltas += 1
        self._check_end()

    def _check_end(self) -> None:
        sampling, count = self.sampling, len(self.begun) + len(self.token_ids)
        stops = [index for index, token_id in enumerate(self.token_ids) if token_id in sampling.stop_token_ids]
        if self.finish_reason == "stop":
            assert stops == [len(self.token_ids) - 1], "a stop token ends the answer and is its last token"
            assert count > sampling.min_tokens, "it stopped too soon"
        else:
            assert not stops, "a stop token went by"
            limit = max(sampling.max_tokens, 0)
            assert count == limit if self.finish_reason == "length" else count < limit, (count, limit)

    @property
    def chosen(self) -> list[float]:
        """The log probabilities of the chosen tokens."""
        return [entry.logprob for entry in self.logprobs]


class Subject:
    """An engine and its vocabulary. `refused` is what it has refused in the case that runs."""

    def __init__(self, loadable: Loadable, engine: ProcessEngine) -> None:
        self.loadable = loadable
        self.engine = engine
        self.refused: list[str] = []
        self.tokenizer = loadable.target.tokenizer()
        self.end = tuple(sorted(self.tokenizer.eos_token_ids))

    @property
    def capabilities(self) -> Capabilities:
        return self.engine.capabilities

    def prompt(self, text: str) -> list[int]:
        """What the chat template makes of a question."""
        return self.tokenizer.encode(chat_prompt(text), add_special_tokens=False)

    def tokens(self, count: int, seed: int = 1) -> list[int]:
        """A prompt of a length, of tokens that are text."""
        usable = [i for i in range(self.capabilities.vocab_size) if not self.tokenizer.is_special(i)]
        return [usable[(seed * 7919 + index * index * 31 + index) % len(usable)] for index in range(count)]

    async def generate(self, prompt: list[int], begun: Sequence[int] = (), **settings: Any) -> Answer:
        """The whole answer, greedy and of 32 tokens unless the settings say otherwise."""
        sampling = SamplingParams(**{"max_tokens": 32, "temperature": 0.0} | settings)
        answer = Answer(sampling, begun)
        stream = self.engine.generate(prompt, sampling, begun)
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for delta in stream:
                    answer.take(delta)
        finally:
            await stream.aclose()
        assert answer.finish_reason is not None, "the stream ended without a reason"
        return answer

    async def gather(self, *requests: tuple[list[int], dict[str, Any]]) -> list[Answer]:
        """Answers that are generated together."""
        return await asyncio.gather(*(self.generate(prompt, **settings) for prompt, settings in requests))

    async def variants(self, prompt: list[int], *settings: dict[str, Any], **common: Any) -> list[Answer]:
        """Answers to one prompt, generated together."""
        return await self.gather(*((prompt, common | own) for own in settings))

    async def honours(self, name: str, **settings: Any) -> bool:
        """Whether the engine declares to honour the field `name`, which `settings` set. If it does not, it must
        refuse them by that name; the report then says so, and the case has no more to ask."""
        if name in self.capabilities.parameters:
            return True
        await self._refuses(name, **settings)
        return False

    async def gives_top_logprobs(self, count: int) -> bool:
        """Whether it declares to give `count` likeliest tokens; see `honours`."""
        if count <= self.capabilities.max_top_logprobs:
            return True
        await self._refuses("top_logprobs", logprobs=count)
        return False

    async def embeds(self) -> bool:
        """Whether it declares to make embeddings; see `honours`."""
        if self.capabilities.embedding_dim is not None:
            return True
        with pytest.raises(UnsupportedParameter) as refused:
            await self.engine.embed([self.tokens(3)])
        self.refused.append(str(refused.value))
        return False

    async def _refuses(self, name: str, **settings: Any) -> None:
        with pytest.raises((UnsupportedParameter, InvalidRequest)) as refused:
            await self.generate(self.tokens(8), **settings)
        assert refused.value.param == name, refused.value
        assert len((await self.generate(self.tokens(8), max_tokens=2)).token_ids) == 2
        self.refused.append(str(refused.value))

    async def settled(self) -> None:
        """Wait until the engine holds no request and no KV cache."""
        stats = self.engine.stats
        await eventually(lambda: (stats().running, stats().waiting, stats().kv_cache_usage) == (0, 0, 0.0))


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the condition is about another process
            await asyncio.sleep(0.001)


@asynccontextmanager
async def running(loadable: Loadable, *, backend: str | None = None, **config: Any) -> AsyncIterator[Subject]:
    """An engine in a process of its own."""
    engine = ProcessEngine(
        loadable.config(**config),
        backend=backend,
        restart_backoff_s=0.05,
        restart_backoff_max_s=0.2,
        stall_timeout_s=PATIENCE_S,
    )
    await engine.start()
    try:
        yield Subject(loadable, engine)
    finally:
        await engine.aclose()
