"""Reasoning: told apart from the answer. Whether a model reasons at all is no matter of the server's."""

from typing import Final

from chatfleet.doctor.client import Json, Unsupported
from chatfleet.doctor.context import Collection, Context, message_of, reasoning_of, user
from chatfleet.doctor.shapes import require

collection = Collection()
check = collection.check

_MARKS: Final = ("<think>", "</think>", "<|channel|>", "[THINK]")
_REQUEST: Final[Json] = {"messages": user("What is 2 + 2? Think first."), "max_tokens": 256}


@check("reasoning.content", "Reasoning is in reasoning_content, and not in content")
async def content(ctx: Context) -> None:
    message = message_of(await ctx.chat(**_REQUEST))
    text = message["content"] or ""
    found = [mark for mark in _MARKS if mark in text]
    require(not found, f"Reasoning is left in the content: {text[:300]!r}")
    if not reasoning_of(message):
        raise Unsupported("The model shows no reasoning.")
    names = [message[name] for name in ("reasoning_content", "reasoning") if message.get(name)]
    require(all(name == names[0] for name in names), "reasoning_content and reasoning are not the same.")


@check("reasoning.stream", "A stream has the reasoning first, then the answer")
async def stream(ctx: Context) -> None:
    chunks = await ctx.chat_stream(**_REQUEST)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    found = [mark for mark in _MARKS if mark in text]
    require(not found, f"Reasoning is left in the content: {text[:300]!r}")
    reasoning = [index for index, delta in enumerate(deltas) if reasoning_of(delta)]
    if not reasoning:
        raise Unsupported("The model shows no reasoning.")
    answered = [index for index, delta in enumerate(deltas) if (delta.get("content") or "").strip()]
    require(not answered or max(reasoning) < min(answered), "There is reasoning behind the beginning of the answer.")
    whole = reasoning_of(message_of(await ctx.chat(**_REQUEST)))
    streamed = "".join(reasoning_of(delta) for delta in deltas)
    if streamed != whole and reasoning_of(message_of(await ctx.chat(**_REQUEST))) == whole:
        require(False, f"The reasoning is {streamed[:200]!r} in the stream, {whole[:200]!r} whole.")


@check("reasoning.usage", "Usage counts the tokens of reasoning", "reasoning_tokens")
async def usage(ctx: Context) -> None:
    answer = await ctx.chat(**_REQUEST)
    counted = (answer["usage"].get("completion_tokens_details") or {}).get("reasoning_tokens")
    if not reasoning_of(message_of(answer)):
        require(not counted, f"reasoning_tokens is {counted} where there is no reasoning.")
        raise Unsupported("The model shows no reasoning.")
    if counted is None:
        raise Unsupported("There is no reasoning_tokens in usage.")
    total = answer["usage"]["completion_tokens"]
    require(0 < counted <= total, f"reasoning_tokens is {counted} of {total} tokens.")


@check("reasoning.effort", "reasoning_effort is taken", "reasoning_effort")
async def effort(ctx: Context) -> None:
    await ctx.chat(**_REQUEST, reasoning_effort="low")
