"""Fakes for unit tests: an engine whose tokens the test decides."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Self

from chatfleet.engines.base import Capabilities, Engine, EngineStats, SamplingParams, TokenDelta, TokenStream

ALL_PARAMETERS = frozenset(SamplingParams.__struct_fields__)


def capabilities(**changes: object) -> Capabilities:
    """A report that honours everything, over the byte tokenizer's vocabulary."""
    fields: dict[str, object] = {
        "engine": "fake",
        "parameters": ALL_PARAMETERS,
        "context_length": 100,
        "vocab_size": 259,
        "embedding_dim": 4,
        "max_top_logprobs": 5,
    }
    return Capabilities(**{**fields, **changes})  # type: ignore[arg-type]


class FakeStream:
    """Deltas from a list; `gate`, where given, is awaited before the first one."""

    def __init__(self, deltas: Sequence[TokenDelta | Exception], gate: asyncio.Event | None) -> None:
        self._deltas = list(deltas)
        self._gate = gate
        self.closed = False

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._gate is not None:
            await self._gate.wait()
        await asyncio.sleep(0)
        if self.closed or not self._deltas:
            raise StopAsyncIteration
        delta = self._deltas.pop(0)
        if isinstance(delta, Exception):
            raise delta
        return delta

    async def aclose(self) -> None:
        self.closed = True

    async def __aenter__(self) -> Self:
        return self


class FakeEngine(Engine):
    """Gives every request the same script, and remembers what it was asked."""

    def __init__(self, script: Sequence[TokenDelta | Exception], gate: asyncio.Event | None = None) -> None:
        self.script = script
        self.gate = gate
        self.requests: list[tuple[list[int], SamplingParams]] = []
        self.outputs: list[list[int]] = []
        self.streams: list[FakeStream] = []

    async def start(self) -> None:
        pass

    @property
    def ready(self) -> bool:
        return True

    @property
    def capabilities(self) -> Capabilities:
        return capabilities()

    def generate(
        self, prompt_token_ids: list[int], sampling: SamplingParams, output_token_ids: Sequence[int] = ()
    ) -> TokenStream:
        self.requests.append((prompt_token_ids, sampling))
        self.outputs.append(list(output_token_ids))
        self.streams.append(FakeStream(self.script, self.gate))
        return self.streams[-1]

    async def embed(self, prompts: Sequence[list[int]]) -> list[bytes]:
        return [b"\0" * 16 for _ in prompts]

    def stats(self) -> EngineStats:
        return EngineStats()

    async def aclose(self) -> None:
        pass


def text_delta(text: str, **fields: object) -> TokenDelta:
    """A delta of the byte tokenizer's tokens."""
    return TokenDelta(request_id=0, token_ids=list(text.encode()), **fields)  # type: ignore[arg-type]
