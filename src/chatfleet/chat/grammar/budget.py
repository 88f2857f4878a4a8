"""How much work one compilation may be: a bound that is looked at in every loop, wherever the work is done."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from chatfleet.chat.grammar import limits
from chatfleet.core.errors import InvalidRequest

_STEPS_PER_LOOK: Final = 64


class _Spent:
    """What the compilation of this context has used up."""

    __slots__ = ("deadline", "next_look", "param", "steps")

    def __init__(self, param: str | None) -> None:
        self.param = param
        self.deadline = time.thread_time() + limits.MAX_COMPILE_S
        self.steps = 0
        self.next_look = _STEPS_PER_LOOK

    def look(self) -> None:
        self.next_look = self.steps + _STEPS_PER_LOOK
        if self.steps > limits.MAX_COMPILE_STEPS:
            allowed = f"{limits.MAX_COMPILE_STEPS} steps"
        elif time.thread_time() > self.deadline:
            allowed = f"{limits.MAX_COMPILE_S:g} s"
        else:
            return
        raise InvalidRequest(
            f"This takes more than {allowed} to compile to a grammar. Simplify the schema or the grammar.",
            param=self.param,
        )


_spent: ContextVar[_Spent | None] = ContextVar("grammar_budget", default=None)


@contextmanager
def budget(param: str | None) -> Iterator[None]:
    """Bounds what is compiled within, in this thread: `tick` raises InvalidRequest with `param` beyond
    `limits.MAX_COMPILE_S` of the thread's own time, or `limits.MAX_COMPILE_STEPS`. Within another it changes nothing.
    """
    if _spent.get() is not None:
        yield
        return
    token = _spent.set(_Spent(param))
    try:
        yield
    finally:
        _spent.reset(token)


def tick(count: int = 1) -> None:
    """Spends so many steps of the budget that this runs in. Without one it does nothing."""
    spent = _spent.get()
    if spent is not None:
        spent.steps += count
        if spent.steps >= spent.next_look:
            spent.look()
