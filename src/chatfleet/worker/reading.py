"""What the text of one choice means, as it grows: content, reasoning and calls, as messages and chunks have them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pydantic_core import from_json

from chatfleet.chat.events import CallArguments, CallBegin, Content, OutputEvent, OutputParser, Reasoning
from chatfleet.chat.formats import CallIds
from chatfleet.chat.text import IncrementalText
from chatfleet.protocol.chat import AnsweredCall, AssistantMessage, CallDelta, CalledFunction, Delta
from chatfleet.protocol.common import FinishReason
from chatfleet.worker.tool_choice import ToolPlan

_SHORT_ID_CHARS: Final = 9


@dataclass(slots=True)
class _Call:
    name: str
    arguments: list[str] = field(default_factory=list)


class ChoiceReader:
    """Reads one choice. `answer_id` and `index` make the ids of its calls, which are the same wherever it goes on.

    Without a parser all text is content.
    """

    def __init__(
        self,
        parser: OutputParser | None,
        plan: ToolPlan,
        *,
        answer_id: str,
        index: int,
        call_ids: CallIds = "long",
    ) -> None:
        self._parser = parser
        self._call_ids = call_ids
        self._plan = plan
        self._seed = f"{answer_id} {index}"
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._thinks = False
        self._is_over = False
        self._undecided_tokens = 0
        self.reasoning_tokens = 0

    def read(self, pieces: Sequence[str], tokens: int, *, ends: bool) -> Delta | None:
        """Take what is new: the text, in pieces of a token each where there is a parser, and the number of tokens that
        made it. None where it means nothing yet."""
        if self._is_over:
            return None
        self._is_over = ends
        if self._parser is None:
            text = "".join(pieces)
            self._content.append(text)
            return Delta(content=text) if text else None
        events: list[OutputEvent] = []
        for piece in pieces:
            found = self._parser.feed(piece)
            self._count(found, min(tokens, 1))
            tokens = max(tokens - 1, 0)
            events += found
        if ends:
            found = self._parser.finish()
            self._count(found, tokens)
            events += found
        return self._delta(events)

    def replay(self, text: IncrementalText, token_ids: Sequence[int], *, is_over: bool) -> None:
        """Take what has been delivered, as `text` shows it."""
        for token_id in token_ids if self._parser is not None else ():
            self.read([text.feed([token_id]).text], 1, ends=False)
        if is_over:
            self.read([text.finish().text], 0, ends=True)

    def finish_reason(self, reason: FinishReason) -> FinishReason:
        """What ended it, in OpenAI's words. A call that was demanded by its name ends it like any text, and so does a
        stop string inside of a call: nobody could run that."""
        if not self._calls or reason != "stop":
            return reason
        if self._plan.is_named or not _is_json(self._calls[-1].arguments):
            return "stop"
        return "function_call" if self._plan.is_legacy else "tool_calls"

    def message(self) -> AssistantMessage:
        """The whole choice."""
        content = "".join(self._content)
        message = AssistantMessage(role="assistant", content=content or (None if self._calls else ""), refusal=None)
        if self._reasoning:
            message.reasoning_content = message.reasoning = "".join(self._reasoning)
        called = [CalledFunction(name=call.name, arguments="".join(call.arguments)) for call in self._calls]
        if called and self._plan.is_legacy:
            message.function_call = called[0]
        elif called:
            message.tool_calls = [
                AnsweredCall(id=self._call_id(index), type="function", function=function)
                for index, function in enumerate(called)
            ]
        return message

    def _count(self, events: Sequence[OutputEvent], tokens: int) -> None:
        """Tokens that show nothing belong to what they stand behind: the end tag to the reasoning."""
        self._undecided_tokens += tokens
        if any(isinstance(event, Reasoning) for event in events):
            self._thinks = True
            self.reasoning_tokens += self._undecided_tokens
            self._undecided_tokens = 0
        elif events:
            if self._thinks:
                self.reasoning_tokens += self._undecided_tokens - tokens
            self._thinks = False
            self._undecided_tokens = 0

    def _delta(self, events: Sequence[OutputEvent]) -> Delta | None:
        content = "".join(event.text for event in events if isinstance(event, Content))
        reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
        calls: dict[int, CallDelta] = {}
        for event in events:
            if isinstance(event, CallBegin | CallArguments) and not (self._plan.one_call and event.index > 0):
                self._add(event, calls)
        self._content.append(content)
        if reasoning:
            self._reasoning.append(reasoning)
        delta = Delta()
        if content:
            delta.content = content
        if reasoning:
            delta.reasoning_content = delta.reasoning = reasoning
        if calls and self._plan.is_legacy:
            delta.function_call = calls[0].function
        elif calls:
            delta.tool_calls = list(calls.values())
        return delta if delta.model_fields_set else None

    def _add(self, event: CallBegin | CallArguments, calls: dict[int, CallDelta]) -> None:
        if isinstance(event, CallBegin):
            self._calls.append(_Call(event.name))
            function = CalledFunction(name=event.name, arguments="")
            calls[event.index] = CallDelta(
                index=event.index, id=self._call_id(event.index), type="function", function=function
            )
            return
        self._calls[event.index].arguments.append(event.fragment)
        if event.index in calls:
            calls[event.index].function.arguments += event.fragment
        else:
            calls[event.index] = CallDelta(index=event.index, function=CalledFunction(arguments=event.fragment))

    def _call_id(self, index: int) -> str:
        if self._call_ids == "named":
            return f"functions.{self._calls[index].name}:{index}"
        digest = hashlib.blake2b(f"{self._seed} {index}".encode(), digest_size=12).hexdigest()
        return digest[:_SHORT_ID_CHARS] if self._call_ids == "short" else f"call_{digest}"


def _is_json(pieces: Sequence[str]) -> bool:
    try:
        from_json("".join(pieces))
    except ValueError:
        return False
    return True
