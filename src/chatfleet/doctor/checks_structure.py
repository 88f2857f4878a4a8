"""Structured output: what is asked for in a form has that form, however weak the model.

The schemas are such that no answer can be long, so that a model that talks nonsense comes to an end too.
"""

import json
from typing import Any, Final

from chatfleet.doctor.client import Failed, Json, Unsupported
from chatfleet.doctor.context import CHAT_PATH, Collection, Context, chat_body, finishes, message_of, user
from chatfleet.doctor.shapes import must_be_error, require

collection = Collection()
check = collection.check

FIELDS: Final = ("response_format", "json_schema")
_QUESTION: Final = user("Describe a fruit as JSON.")
_COLOURS: Final = ("red", "green", "dark blue")
GREETINGS: Final = ("Grüße aus 北京 🙂", "Ωμέγα 👍🏽")

_FRUIT: Final[Json] = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": list(_COLOURS)},
        "count": {"type": "integer", "enum": [1, 2, 3]},
        "ripe": {"type": "boolean"},
    },
    "required": ["colour", "count", "ripe"],
    "additionalProperties": False,
}


def _format(schema: Json) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "fruit", "strict": True, "schema": schema}}


def _request(schema: Json, **fields: Any) -> Json:
    return {"messages": _QUESTION, "max_tokens": 160, "response_format": _format(schema), **fields}


def _parsed(text: object) -> Any:
    require(isinstance(text, str) and text, f"There is no content: {text!r}")
    try:
        return json.loads(str(text))
    except ValueError:
        raise Failed(f"The content is no JSON: {text!r}") from None


def _must_be_fruit(text: object) -> None:
    found = _parsed(text)
    fits = (
        isinstance(found, dict)
        and set(found) == {"colour", "count", "ripe"}
        and found["colour"] in _COLOURS
        and type(found["count"]) is int
        and found["count"] in (1, 2, 3)
        and type(found["ripe"]) is bool
    )
    require(fits, f"The content is not what the schema allows: {text}")


def _content(answer: Json, index: int = 0) -> object:
    """The content of an answer that came to its end. A weak model may fill what a schema leaves open with white space,
    where the server allows that: then nothing can be seen."""
    return _ended(message_of(answer, index)["content"], answer["choices"][index]["finish_reason"])


def _ended(content: Any, reason: object) -> object:
    if reason == "length" and _begins_an_object(content or ""):
        raise Unsupported("The model came to no end within the tokens it had, so that nothing can be seen.")
    require(reason == "stop", f"finish_reason is {reason!r}, not 'stop', for {content!r}.")
    return content


def _begins_an_object(text: str) -> bool:
    """Whether text that was cut off may be the beginning of a JSON object."""
    try:
        json.loads(text)
    except json.JSONDecodeError as exc:
        cut_off = exc.msg.startswith("Unterminated string") or len(text.rstrip()) - exc.pos <= 5
        return text.lstrip()[:1] in ("{", "") and cut_off
    return False


@check("structure.text", "response_format text is plain text", "response_format")
async def text(ctx: Context) -> None:
    await ctx.chat(response_format={"type": "text"})


@check("structure.json_object", "response_format json_object gives a JSON object", "response_format", "json_object")
async def json_object(ctx: Context) -> None:
    messages = user('Answer with this JSON object and nothing else: {"ok": true}')
    answer = await ctx.chat(messages=messages, response_format={"type": "json_object"}, max_tokens=200)
    content, reason = message_of(answer)["content"], answer["choices"][0]["finish_reason"]
    if reason == "length":
        require(_begins_an_object(content or ""), f"The content does not begin a JSON object: {content!r}")
        return
    require(isinstance(_parsed(content), dict), f"The content is no JSON object: {content!r}")


@check("structure.json_schema", "response_format json_schema gives what the schema allows", *FIELDS)
async def json_schema(ctx: Context) -> None:
    for temperature in (0, 1.5):
        _must_be_fruit(_content(await ctx.chat(**_request(_FRUIT, temperature=temperature))))


@check("structure.stream", "The same in a stream", *FIELDS)
async def stream(ctx: Context) -> None:
    chunks = await ctx.chat_stream(**_request(_FRUIT))
    pieces = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    reasons = finishes(chunks)
    require(len(reasons) == 1, f"finish_reason is given {len(reasons)} times: {reasons}")
    _must_be_fruit(_ended("".join(pieces), reasons[0]))


@check("structure.n", "The same for each of several choices", *FIELDS, "n")
async def several(ctx: Context) -> None:
    answer = await ctx.chat(**_request(_FRUIT, n=2, temperature=1.0))
    require(len(answer["choices"]) == 2, "There are not two choices.")
    for index in range(2):
        _must_be_fruit(_content(answer, index))


@check("structure.unicode", "Text that a schema gives comes as it is, streamed too", *FIELDS)
async def unicode(ctx: Context) -> None:
    schema = {"type": "string", "enum": list(GREETINGS)}
    outer = {
        "type": "object",
        "properties": {"greeting": schema},
        "required": ["greeting"],
        "additionalProperties": False,
    }
    whole = _parsed(_content(await ctx.chat(**_request(outer))))
    require(whole.get("greeting") in GREETINGS, f"The greeting is {whole!r}, which the schema does not have.")
    chunks = await ctx.chat_stream(**_request(outer))
    joined = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    require(_parsed(joined).get("greeting") in GREETINGS, f"The greeting is {joined!r} in the stream.")


@check("structure.refs", "References, anyOf, const and arrays in a schema", *FIELDS, "$ref", "anyOf")
async def refs(ctx: Context) -> None:
    tag: Json = {"type": "string", "enum": ["sweet", "sour"]}
    schema: Json = {
        "type": "object",
        "properties": {
            "kind": {"type": "string", "const": "fruit"},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 2},
            "size": {"anyOf": [{"type": "null"}, {"type": "integer", "enum": [1, 2]}]},
        },
        "required": ["kind", "tags", "size"],
        "additionalProperties": False,
        "$defs": {"tag": tag},
    }
    content = _content(await ctx.chat(**_request(schema)))
    found = _parsed(content)
    fits = (
        isinstance(found, dict)
        and found.get("kind") == "fruit"
        and found.get("size", 0) in (None, 1, 2)
        and 1 <= len(found.get("tags", ())) <= 2
        and all(tag in ("sweet", "sour") for tag in found["tags"])
    )
    require(fits, f"The content is not what the schema allows: {content}")


@check("structure.recursion", "A schema that refers to itself", *FIELDS, "$ref", "recurs")
async def recursion(ctx: Context) -> None:
    node: Json = {
        "type": "object",
        "properties": {
            "value": {"type": "integer", "enum": [1, 2]},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
        },
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    outer: Json = {
        "type": "object",
        "properties": {"list": {"$ref": "#/$defs/node"}},
        "required": ["list"],
        "additionalProperties": False,
        "$defs": {"node": node},
    }
    answer = await ctx.chat(**_request(outer))
    content = message_of(answer)["content"]
    if answer["choices"][0]["finish_reason"] == "length":
        require(_begins_an_object(content or ""), f"The content does not begin a JSON object: {content!r}")
        return
    found = _parsed(content)["list"]
    while found is not None:
        fits = isinstance(found, dict) and set(found) == {"value", "next"} and found["value"] in (1, 2)
        require(fits, f"The content is not what the schema allows: {content}")
        found = found["next"]


@check("structure.bad_schema", "A schema that is none is 400", *FIELDS)
async def bad_schema(ctx: Context) -> None:
    await ctx.chat(**_request(_FRUIT))
    body = {"model": ctx.model, **chat_body(), **_request({"type": "no-such-type"})}
    must_be_error(await ctx.post(CHAT_PATH, body), 400)


@check("structure.no_schema", "A json_schema without a schema's name is 400", *FIELDS)
async def no_schema(ctx: Context) -> None:
    await ctx.chat(**_request(_FRUIT))
    body = {"model": ctx.model, **chat_body(), "response_format": {"type": "json_schema"}}
    must_be_error(await ctx.post(CHAT_PATH, body), 400)


@check("structure.tools", "Tools and a schema together: a call, or what the schema allows", *FIELDS, "tools")
async def with_tools(ctx: Context) -> None:
    tool = {"type": "function", "function": {"name": "get_fruit", "parameters": _FRUIT, "strict": True}}
    answer = await ctx.chat(**_request(_FRUIT, tools=[tool]))
    calls = message_of(answer).get("tool_calls")
    _must_be_fruit(calls[0]["function"]["arguments"] if calls else _content(answer))
