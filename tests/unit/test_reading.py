"""One choice as it grows: what chunks carry adds up to the message."""

from typing import Any

import pytest

from chatfleet.chat.events import CallArguments, CallBegin, Content, OutputEvent, Reasoning
from chatfleet.chat.text import IncrementalText
from chatfleet.chat.tokenizer import ByteTokenizer
from chatfleet.protocol.chat import ChatCompletionRequest
from chatfleet.worker.reading import ChoiceReader
from chatfleet.worker.tool_choice import NO_TOOLS, ToolPlan, plan_tools


class Scripted:
    """A parser that gives these events, one list for each text fed, and the last at the end."""

    def __init__(self, *events: list[OutputEvent]) -> None:
        self._events = list(events)

    def feed(self, text: str) -> list[OutputEvent]:
        return self._events.pop(0)

    def finish(self) -> list[OutputEvent]:
        return self._events.pop(0) if self._events else []


CALLING: list[list[OutputEvent]] = [
    [Content("so ")],
    [CallBegin(0, "f"), CallArguments(0, "{")],
    [CallArguments(0, "}"), CallBegin(1, "g"), CallArguments(1, "{}")],
    [],
]


def plan(**fields: Any) -> ToolPlan:
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    return plan_tools(ChatCompletionRequest.model_validate(body))


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def reader(*events: list[OutputEvent], plan: ToolPlan = NO_TOOLS, answer_id: str = "a") -> ChoiceReader:
    return ChoiceReader(Scripted(*events), plan, answer_id=answer_id, index=0)


def read(reading: ChoiceReader, count: int) -> list[dict[str, Any] | None]:
    deltas = [reading.read(["x"], 1, ends=index == count - 1) for index in range(count)]
    return [None if delta is None else delta.model_dump(exclude_unset=True) for delta in deltas]


def test_without_a_parser_all_is_content() -> None:
    reading = ChoiceReader(None, NO_TOOLS, answer_id="a", index=0)
    assert read(reading, 3) == [{"content": "x"}] * 3
    assert reading.message().model_dump(exclude_unset=True) == {"role": "assistant", "content": "xxx", "refusal": None}
    assert reading.finish_reason("stop") == "stop"


def test_calls_come_in_fragments_and_make_the_message() -> None:
    reading = reader(*CALLING, plan=plan(tools=[function("f"), function("g")]))
    first, second, third, last = read(reading, 4)
    assert (first, last) == ({"content": "so "}, None)
    assert second is not None and third is not None
    (call,) = second["tool_calls"]
    assert (call["index"], call["type"], call["function"]) == (0, "function", {"name": "f", "arguments": "{"})
    rest, other = third["tool_calls"]
    assert rest == {"index": 0, "function": {"arguments": "}"}}
    assert (other["index"], other["function"]) == (1, {"name": "g", "arguments": "{}"})
    message = reading.message()
    assert message.content == "so " and message.tool_calls is not None
    assert [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls] == [
        (call["id"], "f", "{}"),
        (other["id"], "g", "{}"),
    ]
    assert reading.finish_reason("stop") == "tool_calls"
    assert reading.finish_reason("length") == "length"


def test_ids_are_the_same_wherever_an_answer_goes_on_and_differ_otherwise() -> None:
    def ids(answer_id: str) -> list[str]:
        reading = reader(*CALLING, plan=plan(tools=[function("f"), function("g")]), answer_id=answer_id)
        read(reading, 4)
        return [call.id for call in reading.message().tool_calls or ()]

    assert ids("a") == ids("a")
    assert len({*ids("a"), *ids("b")}) == 4


def test_ids_are_short_where_templates_want_them_so() -> None:
    tools = plan(tools=[function("f"), function("g")])
    reading = ChoiceReader(Scripted(*CALLING), tools, answer_id="a", index=0, call_ids="short")
    read(reading, 4)
    ids = [call.id for call in reading.message().tool_calls or ()]
    assert [len(call_id) for call_id in ids] == [9, 9] and all(call_id.isalnum() for call_id in ids)


def test_ids_tell_the_function_where_templates_show_nothing_else_of_a_call() -> None:
    tools = plan(tools=[function("f"), function("g")])
    reading = ChoiceReader(Scripted(*CALLING), tools, answer_id="a", index=0, call_ids="named")
    read(reading, 4)
    assert [call.id for call in reading.message().tool_calls or ()] == ["functions.f:0", "functions.g:1"]


def test_one_call_is_one_call() -> None:
    reading = reader(*CALLING, plan=plan(tools=[function("f"), function("g")], parallel_tool_calls=False))
    read(reading, 4)
    assert [call.function.name for call in reading.message().tool_calls or ()] == ["f"]


def test_functions_are_answered_in_the_older_form() -> None:
    reading = reader(*CALLING, plan=plan(functions=[{"name": "f"}, {"name": "g"}]))
    deltas = read(reading, 4)
    assert deltas[1] == {"function_call": {"name": "f", "arguments": "{"}}
    message = reading.message()
    assert message.tool_calls is None and message.function_call is not None
    assert (message.function_call.name, message.function_call.arguments) == ("f", "{}")
    assert reading.finish_reason("stop") == "function_call"


def test_a_call_that_a_stop_string_cuts_is_none_to_run() -> None:
    reading = reader([CallBegin(0, "f"), CallArguments(0, '{"a":')], plan=plan(tools=[function("f")]))
    read(reading, 1)
    assert reading.finish_reason("stop") == "stop"


def test_a_call_by_its_name_ends_like_text() -> None:
    reading = reader(*CALLING, plan=plan(tools=[function("f")], tool_choice=function("f")))
    read(reading, 4)
    assert reading.finish_reason("stop") == "stop"


def test_reasoning_stands_beside_the_content_and_its_tokens_are_counted() -> None:
    reading = reader([], [Reasoning("a")], [Reasoning("b")], [], [Content("c")], [Content("d")])
    deltas = read(reading, 6)
    assert deltas[1] == {"reasoning_content": "a", "reasoning": "a"}
    message = reading.message()
    assert (message.content, message.reasoning_content, message.reasoning) == ("cd", "ab", "ab")
    assert reading.reasoning_tokens == 4, "the tags belong to it"


@pytest.mark.parametrize("is_over", [False, True])
def test_what_was_delivered_is_not_said_again(is_over: bool) -> None:
    events = [*CALLING[:2], CALLING[2], []]
    whole = reader(*events, plan=plan(tools=[function("f"), function("g")]))
    read(whole, 4)
    begun = reader(*(events[:2] if not is_over else events), plan=plan(tools=[function("f"), function("g")]))
    if is_over:
        begun.replay(IncrementalText(ByteTokenizer()), [97, 98, 99], is_over=True)
        assert begun.read([""], 0, ends=True) is None
        assert begun.finish_reason("stop") == "tool_calls"
        return
    begun._parser = Scripted(*events)
    begun.replay(IncrementalText(ByteTokenizer()), [97, 98], is_over=False)
    rest = begun.read(["x"], 1, ends=False)
    assert rest is not None
    assert rest.model_dump(exclude_unset=True)["tool_calls"][0] == {"index": 0, "function": {"arguments": "}"}}
    assert begun.message().tool_calls == whole.message().tool_calls
