"""Backends that misbehave on purpose. The engine process imports this module, so it must stay light."""

import ctypes
import sys
import time

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import EngineConfig, Fault, GenerateRequest, RequestRefused, TokenDelta
from chatfleet.engines.simulated import SimulatedBackend

THROWS = 1
"""A first prompt token with a meaning of its own to these backends; 2 and so on below."""
HOLDS_THE_GIL = 2
REFUSED = 3
BROKEN_ADD = 4
EXITS = 5
SLOW_STEP = 6


class FaultyBackend(SimulatedBackend):
    """Does what the first prompt token says, at its first step."""

    recoveries = 0

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._orders: list[int] = []

    def add(self, request: GenerateRequest) -> None:
        order = request.prompt_token_ids[0]
        if order == REFUSED:
            raise RequestRefused(Fault(message="No such thing.", kind="unsupported", param="logit_bias"))
        if order == BROKEN_ADD:
            raise ValueError("the secret of the prompt")
        super().add(request)
        self._orders.append(order)

    def step(self) -> list[TokenDelta]:
        orders, self._orders = self._orders, []
        for order in orders:
            self._obey(order)
        return super().step()

    def _obey(self, order: int) -> None:
        if order == THROWS:
            raise RuntimeError("the step failed on purpose")
        if order == HOLDS_THE_GIL:
            print("holding the GIL", file=sys.stderr, flush=True)
            ctypes.PyDLL(None).sleep(600)  # a PyDLL call keeps the GIL
        if order == EXITS:
            raise SystemExit(9)
        if order == SLOW_STEP:
            time.sleep(0.5)

    def embed(self, prompt_token_ids: list[int]) -> bytes:
        if prompt_token_ids[0] == THROWS:
            raise RuntimeError("the embedding failed on purpose")
        return super().embed(prompt_token_ids)

    def recover(self) -> None:
        super().recover()
        self._orders.clear()
        type(self).recoveries += 1


class BrokenForGoodBackend(FaultyBackend):
    def recover(self) -> None:
        raise RuntimeError("cannot recover either")


class SlowRecoveryBackend(FaultyBackend):
    def recover(self) -> None:
        time.sleep(3.0)
        super().recover()


def fails_to_load(config: EngineConfig) -> SimulatedBackend:
    raise RuntimeError("the file is damaged")


def misconfigured(config: EngineConfig) -> SimulatedBackend:
    raise ConfigurationError("There is no model at /nowhere. Give the path of a GGUF file.")


def dies_while_loading(config: EngineConfig) -> SimulatedBackend:
    raise SystemExit(7)


def never_loads(config: EngineConfig) -> SimulatedBackend:
    ctypes.PyDLL(None).sleep(600)
    raise AssertionError


def loads_once(config: EngineConfig) -> SimulatedBackend:
    """`model_path` is a file: the first load makes it, the two after it fail, later ones succeed."""
    assert config.model_path is not None
    with open(config.model_path, "a+") as file:
        file.seek(0)
        loads = len(file.read())
        file.write("x")
    if loads in (1, 2):
        raise SystemExit(7)
    return SimulatedBackend(config)
