"""Streams: server-sent events, what is in them, and what is left when a client goes away."""

from chatfleet.doctor.checks_sampling import check_logprobs
from chatfleet.doctor.client import Unsupported
from chatfleet.doctor.context import (
    CHAT_PATH,
    Collection,
    Context,
    chat_body,
    finishes,
    message_of,
    need_text,
    said,
    streamed,
    user,
)
from chatfleet.doctor.shapes import USAGE, must_be_usage, must_fit, require

collection = Collection()
check = collection.check


@check("stream.form", "Events are of the reference's form: the role first, one end, then [DONE]")
async def form(ctx: Context) -> None:
    chunks = await ctx.chat_stream()
    require(len({chunk["id"] for chunk in chunks}) == 1, "The chunks of one stream have different ids.")
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    require(deltas, "No chunk has a choice.")
    require(deltas[0].get("role") == "assistant", f"The first delta has not the role: {deltas[0]}")
    reasons = finishes(chunks)
    require(len(reasons) == 1, f"finish_reason is given {len(reasons)} times: {reasons}")
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    require(choices[-1]["finish_reason"] is not None, "There is a chunk of the choice behind its finish_reason.")
    need_text(streamed(chunks))


@check("stream.same", "A stream is the whole answer in pieces")
async def same(ctx: Context) -> None:
    before, chunks = await ctx.chat(), await ctx.chat_stream()
    text, whole = streamed(chunks), said(message_of(before))
    if text == whole:
        require(
            finishes(chunks) == [before["choices"][0]["finish_reason"]],
            f"finish_reason is {finishes(chunks)} in the stream, {before['choices'][0]['finish_reason']} whole.",
        )
        return
    if said(message_of(await ctx.chat())) != whole:
        raise Unsupported("Two whole answers to the same request differ at temperature 0, so streams may too.")
    require(False, f"The stream is {text!r}, the whole answer {whole!r}.")


@check("stream.usage", "include_usage adds a last chunk with usage and no choices", "stream_options", "include_usage")
async def usage(ctx: Context) -> None:
    chunks = await ctx.chat_stream(stream_options={"include_usage": True})
    last = chunks[-1]
    require(last["choices"] == [], "The last chunk, with usage, must have no choices.")
    must_fit(last.get("usage"), USAGE, "usage of the last chunk")
    must_be_usage(last["usage"])
    others = [chunk.get("usage") for chunk in chunks[:-1]]
    require(not any(others), "usage is in other chunks than the last.")
    whole = (await ctx.chat())["usage"]
    require(
        last["usage"]["prompt_tokens"] == whole["prompt_tokens"],
        f"prompt_tokens is {last['usage']['prompt_tokens']} in the stream, {whole['prompt_tokens']} whole.",
    )


@check("stream.no_usage", "No usage and no chunk without choices where none was asked for")
async def no_usage(ctx: Context) -> None:
    chunks = await ctx.chat_stream()
    require(not any(chunk.get("usage") for chunk in chunks), "A chunk has usage that nobody asked for.")
    require(all(chunk["choices"] for chunk in chunks), "A chunk has no choices, and usage was not asked for.")


@check("stream.n", "Several choices stream together, each with one end", "n")
async def several(ctx: Context) -> None:
    chunks = await ctx.chat_stream(n=3, temperature=1.0)
    for index in range(3):
        reasons = finishes(chunks, index)
        require(len(reasons) == 1, f"Choice {index} has the finish reasons {reasons}, and must have one.")
    indices = {choice["index"] for chunk in chunks for choice in chunk["choices"]}
    require(indices == {0, 1, 2}, f"n is 3, and the choices have the indices {sorted(indices)}.")


@check("stream.logprobs", "logprobs come with the tokens of a stream", "logprobs")
async def logprobs(ctx: Context) -> None:
    chunks = await ctx.chat_stream(logprobs=True)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    entries = [
        entry
        for choice in choices
        if (choice.get("logprobs") or {}).get("content")
        for entry in check_logprobs(choice["logprobs"])
    ]
    require(entries, "No chunk has logprobs.")
    text, joined = streamed(chunks).encode(), b"".join(bytes(entry["bytes"] or ()) for entry in entries)
    require(joined == text, f"The bytes of the tokens are {joined!r}, and the text is {text!r}.")


@check("stream.stop", "A stop string does not show in a stream, in no part", "stop")
async def stop(ctx: Context) -> None:
    full = need_text(streamed(await ctx.chat_stream()))
    middle = full[len(full) // 3 : len(full) // 3 + 4]
    chunks = await ctx.chat_stream(stop=[middle])
    text = streamed(chunks)
    require(middle not in text, f"The stop string {middle!r} is in the stream: {text!r}")
    cut = full.partition(middle)[0]
    if full.startswith(text) or text.startswith(cut):
        require(text == cut, f"With the stop string {middle!r} the stream is {text!r}, not {cut!r}.")
        require(
            finishes(chunks) == ["stop"], f"The finish reasons are {finishes(chunks)} where a stop string ended it."
        )


@check("stream.unicode", "Characters of several bytes are never split")
async def unicode(ctx: Context) -> None:
    messages = user("Repeat exactly: Grüße aus 北京 🙂👍🏽 — Ωμέγα. 🙂🙂🙂🙂🙂🙂")
    chunks = await ctx.chat_stream(messages=messages, max_tokens=64)
    text = streamed(chunks)
    for chunk in chunks:
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content") or ""
            require(not any("\ud800" <= char <= "\udfff" for char in piece), f"A delta has half a character: {piece!r}")
    if "\ufffd" in text:
        whole = said(message_of(await ctx.chat(messages=messages, max_tokens=64)))
        require("\ufffd" in whole, f"The stream has U+FFFD where a character was split: {text!r}")


@check("stream.disconnect", "A client that goes away leaves a server that answers")
async def disconnect(ctx: Context) -> None:
    for _ in range(3):
        await ctx.leave(CHAT_PATH, {"model": ctx.model, **chat_body(), "max_tokens": 256, "stream": True})
    await ctx.chat()


@check("stream.early_errors", "What is wrong with a request is a status, not an event")
async def early_errors(ctx: Context) -> None:
    answer = await ctx.post(CHAT_PATH, {"model": ctx.model, **chat_body(), "temperature": -5, "stream": True})
    require(answer.status >= 400, f"The status is {answer.status} for a stream with a temperature of -5.")
    require(answer.error_message(), f"The error has no message: {answer.start()}")
