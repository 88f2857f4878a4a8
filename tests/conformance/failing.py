"""Any engine's backend, with a step that throws on order. The engine process imports this module."""

from typing import Final

from chatfleet.engines.base import Backend, Capabilities, EngineConfig, EngineStats, GenerateRequest, TokenDelta
from chatfleet.engines.registry import backend_path, create_backend

PATH: Final = f"{__name__}:FailingBackend"

THROWS_BEFORE: Final = [3, 1, 4, 1, 5]
"""How the prompt begins whose first step throws before the engine has done anything; below, after it has done all."""
THROWS_AFTER: Final = [2, 7, 1, 8, 2]


class FailingBackend(Backend):
    """The engine that `config` names, in all but that."""

    def __init__(self, config: EngineConfig) -> None:
        self._inner = create_backend(backend_path(config.engine), config)
        self._orders: list[list[int]] = []

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def add(self, request: GenerateRequest) -> None:
        self._inner.add(request)
        self._orders.append(request.prompt_token_ids[:5])

    def cancel(self, request_id: int) -> None:
        self._inner.cancel(request_id)

    def step(self) -> list[TokenDelta]:
        orders, self._orders = self._orders, []
        if THROWS_BEFORE in orders:
            raise RuntimeError("the step failed on purpose")
        deltas = self._inner.step()
        if THROWS_AFTER in orders:
            raise RuntimeError("the step failed on purpose, and its tokens are lost")
        return deltas

    def next_step_s(self) -> float | None:
        return self._inner.next_step_s()

    def stats(self) -> EngineStats:
        return self._inner.stats()

    def embedding_ready(self) -> bool:
        return self._inner.embedding_ready()

    def embed(self, prompt_token_ids: list[int]) -> bytes:
        return self._inner.embed(prompt_token_ids)

    def recover(self) -> None:
        self._inner.recover()

    def close(self) -> None:
        self._inner.close()
