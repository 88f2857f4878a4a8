"""A circuit breaker: whether a worker that fails gets requests.

Pure: no clock and no sockets. Times are monotonic seconds that the caller gives.

It is closed until FAILURES in a row have opened it. Open, it lets no request through until a probe has found the worker
alive. Then it is half-open: one request at a time may try the worker, and its outcome closes or opens it.
"""

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Final

FAILURES: Final = 5
REFUSALS: Final = 2
"""Failures in a row that are enough where the last of them is that no connection could be made."""

AVOID_S: Final = 1.0
"""For how long a single failure makes others be preferred."""

FIRST_DELAY_S: Final = 1.0
MAX_DELAY_S: Final = 30.0
"""An open breaker waits for so long before a probe: the first, and twice that after each that brings no success."""


class CircuitState(IntEnum):
    """The higher, the worse."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """`on_change` is called after each change of the state, with the one before."""

    def __init__(self, on_change: Callable[[CircuitState], None]) -> None:
        self.state = CircuitState.CLOSED
        self.failures = 0
        """In a row."""
        self.avoid_until = 0.0
        """Until when others are preferred; infinity while no request is to be let through."""
        self.probe_at = math.inf
        """When a probe is due; infinity unless it is open."""
        self._delay_s = FIRST_DELAY_S
        self._trial: object | None = None
        self._on_change = on_change

    def failed(self, now: float, *, unreachable: bool = False) -> None:
        """A request has failed, `unreachable` where no connection could be made."""
        self.failures += 1
        if self.state is CircuitState.OPEN:
            return
        if self.state is CircuitState.HALF_OPEN or self.failures >= (REFUSALS if unreachable else FAILURES):
            self._open(now)
        else:
            self.avoid_until = now + AVOID_S

    def succeeded(self) -> None:
        """A request has been answered. That counts whenever it was sent: the worker is well."""
        self.failures = 0
        if self.state is not CircuitState.CLOSED:
            self._delay_s = FIRST_DELAY_S
            self._let_through()
            self._turn(CircuitState.CLOSED)

    def probed(self, *, alive: bool, now: float) -> None:
        """The outcome of a probe; without effect when none was due."""
        if self.probe_at > now:
            return
        if alive:
            self._let_through()
            self._turn(CircuitState.HALF_OPEN)
        else:
            self._open(now)

    def began(self, request: object) -> None:
        """A request is on its way. To be told unless closed."""
        if self.state is CircuitState.HALF_OPEN and self._trial is None:
            self._trial = request
            self.avoid_until = math.inf

    def ended(self, request: object) -> None:
        """It is no more. To be told unless closed. Without an outcome, it is another's turn to try."""
        if request is self._trial:
            self._let_through()

    def _let_through(self) -> None:
        self._trial = None
        self.avoid_until = 0.0
        self.probe_at = math.inf

    def _open(self, now: float) -> None:
        self._trial = None
        self.avoid_until = math.inf
        self.probe_at = now + self._delay_s
        self._delay_s = min(2 * self._delay_s, MAX_DELAY_S)
        self._turn(CircuitState.OPEN)

    def _turn(self, state: CircuitState) -> None:
        before, self.state = self.state, state
        if state is not before:
            self._on_change(before)
