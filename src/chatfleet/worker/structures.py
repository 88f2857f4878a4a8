"""Constraints of requests: compiled one at a time in a thread of their own, and remembered."""

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from chatfleet.chat.formats import ReasoningFormat, ToolFormat
from chatfleet.core.errors import InvalidRequest, UnsupportedParameter
from chatfleet.engines.base import Capabilities, GrammarSyntax
from chatfleet.protocol.common import SamplingFields
from chatfleet.worker.structure import Constraint, compile_constraint, describe, wanted_structure
from chatfleet.worker.tool_choice import NO_TOOLS, ToolPlan

_MAX_KEPT: Final = 128
_MAX_KEPT_CHARS: Final = 4_000_000
"""Of all grammars as text. A grammar takes about 50 times that in memory."""


@dataclass(slots=True)
class _Compiling:
    """A refusal is kept as well: it took as long. `waiters` still want it."""

    outcome: Future[Constraint | InvalidRequest]
    waiters: int = 0

    @property
    def chars(self) -> int:
        if not self.outcome.done() or self.outcome.cancelled() or self.outcome.exception() is not None:
            return 0
        outcome = self.outcome.result()
        return len(outcome.text) if isinstance(outcome, Constraint) else 0


class Structures:
    """What requests want their answers to be. Equal ones share one compilation; one that nobody waits for any more is
    not begun."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="chatfleet-grammar")
        self._known: OrderedDict[bytes, _Compiling] = OrderedDict()

    async def constraint(
        self,
        request: SamplingFields,
        capabilities: Capabilities,
        *,
        plan: ToolPlan = NO_TOOLS,
        tools: ToolFormat | None = None,
        reasoning: ReasoningFormat | None = None,
        opened: bool = False,
    ) -> Constraint | None:
        """What every choice of `request` has to be; None where it may be anything.

        `tools` and `reasoning` are the model's formats; `opened` says that the prompt ends inside of a reasoning.
        Raises InvalidRequest for what no grammar can say, UnsupportedParameter where the engine takes none.
        """
        wanted = wanted_structure(request)
        if wanted is None and not plan.is_enforced:
            return None
        syntax = capabilities.grammar_syntax
        if syntax is None:
            param = plan.param if wanted is None else wanted.param
            raise UnsupportedParameter(
                f"The engine {capabilities.engine!r} cannot hold answers to a form, which '{param}' asks for here.",
                param=param,
            )
        description = await asyncio.to_thread(describe, wanted, plan, tools, reasoning, opened=opened)
        outcome = await self._compiled(description, syntax)
        if isinstance(outcome, InvalidRequest):
            raise outcome.with_traceback(None)
        return outcome

    async def _compiled(self, description: str, syntax: GrammarSyntax) -> Constraint | InvalidRequest:
        key = hashlib.blake2b(f"{syntax} {description}".encode(), digest_size=16).digest()
        compiling = self._known.get(key)
        if compiling is None or compiling.outcome.cancelled():
            compiling = self._known[key] = _Compiling(self._pool.submit(_outcome, description, syntax))
        self._known.move_to_end(key)
        compiling.waiters += 1
        try:
            outcome = await asyncio.shield(asyncio.wrap_future(compiling.outcome))
        except BaseException:
            if compiling.waiters == 1 and compiling.outcome.cancel():
                self._known.pop(key, None)
            raise
        finally:
            compiling.waiters -= 1
        self._trim()
        return outcome

    def _trim(self) -> None:
        chars = sum(compiling.chars for compiling in self._known.values())
        while len(self._known) > 1 and (len(self._known) > _MAX_KEPT or chars > _MAX_KEPT_CHARS):
            _, oldest = self._known.popitem(last=False)
            chars -= oldest.chars


def _outcome(description: str, syntax: GrammarSyntax) -> Constraint | InvalidRequest:
    try:
        return compile_constraint(description, syntax)
    except InvalidRequest as exc:
        return exc
