"""Tools: calls that a request may force are forced, and what is called is what was offered.

No check demands that a model chooses to call: that is its wit, and not the server's.
"""

import json
from typing import Any, Final

from chatfleet.doctor.client import Failed, Json
from chatfleet.doctor.context import CHAT_PATH, Collection, Context, chat_body, finishes, message_of, user
from chatfleet.doctor.shapes import must_be_error, require

collection = Collection()
check = collection.check

_CITIES: Final = ("Paris", "Rome", "Oslo")
_QUESTION: Final = user("What is the weather in Paris?")
_MARKS: Final = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function=", "<|tool_call")


def _tool(name: str, description: str, *, strict: bool = False) -> Json:
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": list(_CITIES)},
            "days": {"type": "integer", "enum": [1, 2, 3]},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    function: Json = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": {**function, "strict": True} if strict else function}


_LOOSE: Final = [
    _tool("get_weather", "The weather of a city for some days."),
    _tool("get_news", "The news of a city for some days."),
]
_STRICT: Final = [
    _tool("get_weather", "The weather of a city for some days.", strict=True),
    _tool("get_news", "The news of a city for some days.", strict=True),
]


def _request(**fields: Any) -> Json:
    return {"messages": _QUESTION, "max_tokens": 200, "tools": _LOOSE, **fields}


def _must_be_arguments(text: str, *, strict: bool) -> None:
    """Raises Failed unless it is a JSON object; of a strict tool, one that its parameters allow."""
    try:
        arguments = json.loads(text)
    except ValueError:
        raise Failed(f"The arguments are no JSON: {text!r}") from None
    require(isinstance(arguments, dict), f"The arguments are no JSON object: {text}")
    fits = not strict or (
        set(arguments) == {"city", "days"} and arguments["city"] in _CITIES and arguments["days"] in (1, 2, 3)
    )
    require(fits, f"The arguments are not what the schema of the tool allows: {text}")


def _calls(answer: Json) -> list[Json]:
    calls: list[Json] = message_of(answer).get("tool_calls") or []
    ids = [call["id"] for call in calls]
    require(all(ids) and len(set(ids)) == len(ids), f"Every call must have an id of its own: {ids}")
    return calls


def _must_call(answer: Json, *names: str, strict: bool = False) -> list[Json]:
    calls = _calls(answer)
    require(calls, f"No tool is called, though one must be. The message: {json.dumps(message_of(answer))[:300]}")
    for call in calls:
        require(call["function"]["name"] in names, f"{call['function']['name']!r} is called, which may not be.")
        _must_be_arguments(call["function"]["arguments"], strict=strict)
    return calls


@check("tools.auto", "With tools offered, the answer is text or well-formed calls", "tools", "tool_choice")
async def auto(ctx: Context) -> None:
    answer = await ctx.chat(**_request(tool_choice="auto"))
    message, reason = message_of(answer), answer["choices"][0]["finish_reason"]
    if _calls(answer):
        require(reason in ("tool_calls", "length"), f"finish_reason is {reason!r} where tools are called.")
        for call in _calls(answer):
            _must_be_arguments(call["function"]["arguments"], strict=False)
        return
    require(reason in ("stop", "length"), f"finish_reason is {reason!r} where no tool is called.")
    text = message["content"]
    require(isinstance(text, str), "There is neither a call nor text.")
    found = [mark for mark in _MARKS if mark in text]
    require(not found or reason == "length", f"A call is left in the text: {text!r}")


@check("tools.required", "tool_choice required makes the model call", "tools", "tool_choice", "required")
async def required(ctx: Context) -> None:
    answer = await ctx.chat(**_request(tool_choice="required"))
    _must_call(answer, "get_weather", "get_news")
    reason = answer["choices"][0]["finish_reason"]
    require(reason == "tool_calls", f"finish_reason is {reason!r}, not 'tool_calls'.")


@check("tools.named", "A named tool is the one that is called", "tools", "tool_choice")
async def named(ctx: Context) -> None:
    choice = {"type": "function", "function": {"name": "get_news"}}
    answer = await ctx.chat(**_request(tool_choice=choice))
    _must_call(answer, "get_news")
    reason = answer["choices"][0]["finish_reason"]
    require(reason in ("stop", "tool_calls"), f"finish_reason is {reason!r} where a named tool is called.")


@check("tools.none", "tool_choice none keeps the model from calling", "tools", "tool_choice", "none")
async def none(ctx: Context) -> None:
    answer = await ctx.chat(**_request(tool_choice="none", max_tokens=64))
    require(not _calls(answer), "A tool is called, though tool_choice is none.")
    require(answer["choices"][0]["finish_reason"] != "tool_calls", "finish_reason is 'tool_calls' without a call.")


@check("tools.allowed", "allowed_tools leaves only some of them", "tools", "tool_choice", "allowed_tools")
async def allowed(ctx: Context) -> None:
    tools = [{"type": "function", "function": {"name": "get_news"}}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": tools}}
    _must_call(await ctx.chat(**_request(tools=_STRICT, tool_choice=choice)), "get_news", strict=True)


@check("tools.one", "parallel_tool_calls false allows one call", "tools", "tool_choice", "parallel_tool_calls")
async def one(ctx: Context) -> None:
    question = user("What is the weather in Paris, in Rome and in Oslo? Look up all three.")
    answer = await ctx.chat(**_request(messages=question, tool_choice="required", parallel_tool_calls=False))
    calls = _must_call(answer, "get_weather", "get_news")
    require(len(calls) == 1, f"There are {len(calls)} calls where parallel_tool_calls is false.")


@check("tools.strict", "The arguments of a strict tool fit its schema", "tools", "strict", "tool_choice")
async def strict(ctx: Context) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    for temperature in (0, 1.5):
        answer = await ctx.chat(**_request(tools=_STRICT, tool_choice=choice, temperature=temperature))
        _must_call(answer, "get_weather", strict=True)


@check("tools.stream", "A call streams as its name and pieces of its arguments", "tools", "tool_choice", "required")
async def stream(ctx: Context) -> None:
    chunks = await ctx.chat_stream(**_request(tools=_STRICT, tool_choice="required"))
    calls: dict[int, Json] = {}
    for delta in (choice["delta"] for chunk in chunks for choice in chunk["choices"]):
        for piece in delta.get("tool_calls") or []:
            function = piece.get("function") or {}
            call = calls.get(piece["index"])
            if call is None:
                require(piece.get("id"), f"The first piece of a call has no id: {piece}")
                require(piece.get("type") == "function", f"The first piece of a call has no type: {piece}")
                require(function.get("name"), f"The first piece of a call has no name: {piece}")
                call = calls[piece["index"]] = {"id": piece["id"], "name": function["name"], "arguments": ""}
            else:
                require(piece.get("id") in (None, "", call["id"]), f"The id of a call changes: {piece}")
                require(not function.get("name"), f"The name of a call comes twice: {piece}")
            call["arguments"] += function.get("arguments") or ""
    require(calls, "No tool is called, though one must be.")
    require(sorted(calls) == list(range(len(calls))), f"The indices of the calls are {sorted(calls)}.")
    for call in calls.values():
        require(call["name"] in ("get_weather", "get_news"), f"{call['name']!r} is called, which is no tool.")
        _must_be_arguments(call["arguments"], strict=True)
    require(finishes(chunks) == ["tool_calls"], f"The finish reasons are {finishes(chunks)}, not ['tool_calls'].")


@check("tools.n", "Each of several choices calls", "tools", "tool_choice", "required", "n")
async def several(ctx: Context) -> None:
    answer = await ctx.chat(**_request(tool_choice="required", n=2, temperature=1.0))
    require(len(answer["choices"]) == 2, "There are not two choices.")
    ids: list[str] = []
    for choice in answer["choices"]:
        ids += [call["id"] for call in _must_call({"choices": [choice]}, "get_weather", "get_news")]
    require(len(set(ids)) == len(ids), f"Calls of two choices have one id: {ids}")


@check("tools.results", "A call and its result may be given back", "tools", "tool_calls", "tool")
async def results(ctx: Context) -> None:
    call = {
        "id": "call_weather1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": 1}'},
    }
    messages = [
        *_QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_weather1", "content": '{"sky": "clear", "celsius": 21}'},
    ]
    answer = await ctx.chat(**_request(messages=messages, max_tokens=64))
    reason = answer["choices"][0]["finish_reason"]
    require(reason in ("stop", "length", "tool_calls"), f"finish_reason is {reason!r}.")


@check("tools.round_trip", "What is called can be given back as it came", "tools", "tool_choice", "required")
async def round_trip(ctx: Context) -> None:
    answer = await ctx.chat(**_request(tool_choice="required", parallel_tool_calls=False))
    calls = _must_call(answer, "get_weather", "get_news")
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "clear, 21 degrees"} for call in calls]
    await ctx.chat(**_request(messages=[*_QUESTION, message_of(answer), *results], max_tokens=32))


@check("tools.functions", "The deprecated functions and function_call work", "functions", "function_call")
async def functions(ctx: Context) -> None:
    body = {**chat_body(), "messages": _QUESTION, "max_tokens": 200, "functions": [_LOOSE[0]["function"]]}
    answer = await ctx.ask(CHAT_PATH, {**body, "function_call": {"name": "get_weather"}})
    call = answer["choices"][0]["message"].get("function_call")
    require(isinstance(call, dict), f"There is no function_call in {json.dumps(answer['choices'][0])[:300]}")
    require(call["name"] == "get_weather", f"{call['name']!r} is called, not 'get_weather'.")
    _must_be_arguments(call["arguments"], strict=False)


@check("tools.unknown_choice", "To demand a tool that was not offered is 400", "tools", "tool_choice")
async def unknown_choice(ctx: Context) -> None:
    await ctx.chat(**_request(tool_choice="none", max_tokens=8))
    choice = {"type": "function", "function": {"name": "no_such_tool"}}
    body = {"model": ctx.model, **chat_body(), **_request(tool_choice=choice)}
    must_be_error(await ctx.post(CHAT_PATH, body), 400)


@check("tools.no_tools", "A tool_choice without tools is 400", "tools", "tool_choice")
async def no_tools(ctx: Context) -> None:
    await ctx.chat(**_request(tool_choice="none", max_tokens=8))
    must_be_error(await ctx.post(CHAT_PATH, {"model": ctx.model, **chat_body(), "tool_choice": "required"}), 400)
