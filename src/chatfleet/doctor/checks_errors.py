"""What is wrong is refused, with the status and the form that clients expect."""

from typing import Any, Final

from chatfleet.doctor.client import Unsupported
from chatfleet.doctor.context import CHAT_PATH, Collection, Context, chat_body, user
from chatfleet.doctor.shapes import ERROR, must_be_error, must_fit, require

collection = Collection()
check = collection.check

_MAX_WORDS: Final = 400_000


@check("errors.form", "An error is {error: {message, type, param, code}} as JSON")
async def form(ctx: Context) -> None:
    answer = await ctx.post(CHAT_PATH, {"model": ctx.model, **chat_body(), "temperature": "hot"})
    require(answer.status == 400, f"The status is {answer.status}, not 400. It says: {answer.start()}")
    must_fit(answer.json(), ERROR, "The answer")


@check("errors.unknown_model", "A model that does not exist is 404")
async def unknown_model(ctx: Context) -> None:
    answer = await ctx.post(CHAT_PATH, {"model": "no-such-model-anywhere", **chat_body()})
    must_be_error(answer, 404)


@check("errors.bad_json", "A body that is no JSON is 400")
async def bad_json(ctx: Context) -> None:
    must_be_error(await ctx.post(CHAT_PATH, b'{"model": "x", "messages": ['), 400)


@check("errors.no_messages", "A request without messages is 400")
async def no_messages(ctx: Context) -> None:
    must_be_error(await ctx.post(CHAT_PATH, {"model": ctx.model}), 400, param="messages")


@check("errors.empty_messages", "An empty list of messages is 400")
async def empty_messages(ctx: Context) -> None:
    must_be_error(await ctx.post(CHAT_PATH, {"model": ctx.model, "messages": []}), 400)


@check("errors.wrong_types", "Values of a wrong type are 400")
async def wrong_types(ctx: Context) -> None:
    wrong: list[dict[str, Any]] = [
        {"messages": "hello"},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "nobody", "content": "hello"}]},
        {"max_tokens": "many"},
        {"stream": "maybe"},
        {"stop": 5},
    ]
    for fields in wrong:
        must_be_error(await ctx.post(CHAT_PATH, {"model": ctx.model, **chat_body(), **fields}), 400)


@check("errors.temperature", "A temperature out of range is 400 with its param")
async def temperature(ctx: Context) -> None:
    await _refused(ctx, "temperature", -0.1, 2.1)


@check("errors.top_p", "A top_p out of range is 400 with its param")
async def top_p(ctx: Context) -> None:
    await _refused(ctx, "top_p", -0.1, 1.1)


@check("errors.penalties", "Penalties out of range are 400 with their param")
async def penalties(ctx: Context) -> None:
    await _refused(ctx, "presence_penalty", -2.1, 2.1)
    await _refused(ctx, "frequency_penalty", -2.1, 2.1)


@check("errors.max_tokens", "A negative max_tokens is 400 with its param")
async def max_tokens(ctx: Context) -> None:
    await _refused(ctx, "max_tokens", -5)


@check("errors.n", "An n of 0 is 400 with its param")
async def no_choices(ctx: Context) -> None:
    await _refused(ctx, "n", 0)


@check("errors.stop", "More than four stop strings are 400 with its param")
async def stop(ctx: Context) -> None:
    await _refused(ctx, "stop", ["a1", "b2", "c3", "d4", "e5"])


@check("errors.logit_bias", "A bias over 100 is 400 with its param")
async def logit_bias(ctx: Context) -> None:
    await _refused(ctx, "logit_bias", {"65": 101})


@check("errors.top_logprobs", "top_logprobs over 20 are 400 with its param")
async def top_logprobs(ctx: Context) -> None:
    answer = await ctx.post(CHAT_PATH, {"model": ctx.model, **chat_body(), "logprobs": True, "top_logprobs": 21})
    must_be_error(answer, 400, param="top_logprobs")


async def _refused(ctx: Context, field: str, *values: Any) -> None:
    for value in values:
        must_be_error(await ctx.post(CHAT_PATH, {"model": ctx.model, **chat_body(), field: value}), 400, param=field)


@check("errors.context_length", "A prompt over the context is 400 with context_length_exceeded")
async def context_length(ctx: Context) -> None:
    words = min(await _context_words(ctx), _MAX_WORDS)
    answer = await ctx.post(CHAT_PATH, {"model": ctx.model, "messages": user("one two " * words), "max_tokens": 4})
    if answer.status == 200:
        read = answer.json()["usage"]["prompt_tokens"]
        require(read >= words, f"A prompt of {2 * words} words was cut without a word: {read} tokens were read.")
        raise Unsupported(f"The model takes prompts of {read} tokens; longer ones are not tried.")
    must_be_error(answer, 400, code="context_length_exceeded")


async def _context_words(ctx: Context) -> int:
    """As many words as cannot fit the context, where the server says how long that is."""
    answer = await ctx.get("/models")
    ctx.must_be_granted(answer)
    for card in answer.json()["data"]:
        if card["id"] == ctx.model:
            length = card.get("max_model_len") or (card.get("meta") or {}).get("n_ctx_train")
            if isinstance(length, int):
                return length + 1
    return _MAX_WORDS


@check("errors.unknown_path", "A path that does not exist is 404")
async def unknown_path(ctx: Context) -> None:
    answer = await ctx.post("/no/such/path", {})
    require(answer.status == 404, f"The status is {answer.status}, not 404.")
