"""/v1/completions, the older API for plain text."""

from typing import Any

from chatfleet.doctor.checks_sampling import token_ids
from chatfleet.doctor.client import Json, Unsupported
from chatfleet.doctor.context import COMPLETIONS_PATH, STEADY, Collection, Context, need_text
from chatfleet.doctor.shapes import must_be_error, require

collection = Collection()
check = collection.check

_PROMPT = "Once upon a time"
_HERE = "completions"


def _text(answer: Json, index: int = 0) -> str:
    return str(answer["choices"][index]["text"])


@check("completions.whole", "A whole completion has the reference's form", _HERE)
async def whole(ctx: Context) -> None:
    answer = await ctx.completion()
    require(len(answer["choices"]) == 1 and answer["choices"][0]["index"] == 0, "There is not just one choice, 0.")
    require(answer["choices"][0]["finish_reason"] is not None, "There is no finish_reason.")
    need_text(_text(answer))


@check("completions.stream", "A stream is the whole completion in pieces", _HERE)
async def stream(ctx: Context) -> None:
    before, chunks = await ctx.completion(), await ctx.completion_stream()
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["text"] for choice in choices)
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    require(len(reasons) == 1, f"finish_reason is given {len(reasons)} times: {reasons}")
    if text != _text(before):
        if _text(await ctx.completion()) != _text(before):
            raise Unsupported("Two whole completions of the same request differ at temperature 0, so streams may too.")
        require(False, f"The stream is {text!r}, the whole completion {_text(before)!r}.")


@check("completions.usage", "include_usage ends a stream with usage", _HERE, "stream_options", "include_usage")
async def usage(ctx: Context) -> None:
    last = (await ctx.completion_stream(stream_options={"include_usage": True}))[-1]
    require(last["choices"] == [], "The last chunk, with usage, must have no choices.")
    require(last.get("usage"), "The last chunk has no usage.")


@check("completions.prompts", "Several prompts give several choices, in their order", _HERE, "prompt")
async def prompts(ctx: Context) -> None:
    answer = await ctx.completion(prompt=[_PROMPT, "The capital of France is"], echo=False)
    indices = [choice["index"] for choice in answer["choices"]]
    require(sorted(indices) == [0, 1], f"Two prompts give choices with the indices {indices}.")


@check("completions.n", "n choices of each prompt", _HERE, "n")
async def several(ctx: Context) -> None:
    answer = await ctx.completion(prompt=[_PROMPT, "The capital of France is"], n=2, temperature=1.0)
    indices = sorted(choice["index"] for choice in answer["choices"])
    require(indices == [0, 1, 2, 3], f"Two prompts and n = 2 give choices with the indices {indices}.")


@check("completions.token_ids", "A prompt may be token ids", _HERE, "prompt")
async def ids(ctx: Context) -> None:
    prompt = await token_ids(ctx, _PROMPT)
    if not prompt:
        prompt = [70, 71, 72]
    answer = await ctx.completion(prompt=prompt)
    count = answer["usage"]["prompt_tokens"]
    require(count in (len(prompt), len(prompt) + 1), f"A prompt of {len(prompt)} ids has {count} prompt tokens.")


@check("completions.stop", "A stop string cuts the text exactly there", _HERE, "stop")
async def stop(ctx: Context) -> None:
    full = need_text(_text(await ctx.completion()))
    middle = full[len(full) // 3 : len(full) // 3 + 3]
    text = _text(await ctx.completion(stop=[middle]))
    require(middle not in text, f"The stop string {middle!r} is in the text: {text!r}")
    cut = full.partition(middle)[0]
    if full.startswith(text) or text.startswith(cut):
        require(text == cut, f"With the stop string {middle!r} the text is {text!r}, not {cut!r}.")


@check("completions.max_tokens", "max_tokens ends it, with finish_reason length", _HERE)
async def max_tokens(ctx: Context) -> None:
    answer = await ctx.completion(max_tokens=3)
    count, reason = answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]
    require(count <= 3, f"{count} tokens were generated where max_tokens is 3.")
    if reason != "stop":
        require(
            reason == "length" and count == 3, f"It ended with {reason!r} and {count} tokens where max_tokens is 3."
        )


@check("completions.echo", "echo puts the prompt before the text", _HERE, "echo")
async def echo(ctx: Context) -> None:
    plain, echoed = _text(await ctx.completion()), _text(await ctx.completion(echo=True))
    require(echoed.startswith(_PROMPT), f"With echo the text does not begin with the prompt: {echoed!r}")
    require(echoed == _PROMPT + plain, f"With echo the text is {echoed!r}, without it {plain!r}.")


@check("completions.logprobs", "logprobs are of the tokens of the text, with their places", _HERE, "logprobs")
async def logprobs(ctx: Context) -> None:
    answer = await ctx.completion(logprobs=0)
    found = _logprobs(answer)
    _must_be_places(found, need_text(_text(answer)), 0)
    for value in found["token_logprobs"]:
        require(value is not None and value <= 1e-6, f"A log probability is {value}.")


@check("completions.top_logprobs", "logprobs 2 gives two alternatives of every token", _HERE, "logprobs")
async def top_logprobs(ctx: Context) -> None:
    found = _logprobs(await ctx.completion(logprobs=2))
    require(found["top_logprobs"], "There are no top_logprobs.")
    for value, top in zip(found["token_logprobs"], found["top_logprobs"], strict=True):
        require(1 <= len(top) <= 3, f"logprobs is 2, and a token has {len(top)} alternatives.")
        require(max(top.values()) >= value - 1e-4, "The likeliest alternative is less likely than the token itself.")


@check("completions.echo_logprobs", "With echo there are logprobs of the prompt", _HERE, "echo", "logprobs")
async def echo_logprobs(ctx: Context) -> None:
    answer = await ctx.completion(logprobs=1, echo=True, max_tokens=4)
    found = _logprobs(answer)
    require(found["token_logprobs"][0] is None, "The first token of the prompt has a log probability: of nothing.")
    count = answer["usage"]["total_tokens"]
    listed = len(found["tokens"])
    require(count - 1 <= listed <= count, f"There are log probabilities of {listed} tokens, and usage has {count}.")
    _must_be_places(found, _text(answer), 0)


def _logprobs(answer: Json) -> Json:
    found = answer["choices"][0].get("logprobs")
    require(isinstance(found, dict), f"logprobs were asked for, and logprobs is {found!r}.")
    lists = [found.get(name) for name in ("tokens", "token_logprobs", "text_offset")]
    require(all(isinstance(each, list) and each for each in lists), "tokens, token_logprobs or text_offset is no list.")
    require(len({len(each) for each in lists if each}) == 1, "The lists of logprobs have different lengths.")
    return dict(found)


def _must_be_places(found: Json, text: str, start: int) -> None:
    """Offsets are characters into the text, and begin where its first token does."""
    offsets: list[Any] = found["text_offset"]
    base = offsets[0] - start
    require(offsets == sorted(offsets), f"text_offset does not grow: {offsets}")
    for token, offset in zip(found["tokens"], offsets, strict=True):
        place = offset - base
        shown = "\ufffd" not in token and not token.startswith(("bytes:", "<"))
        ended = place >= len(text)  # the token that ends the text does not show
        require(
            not shown or ended or text.startswith(token, place),
            f"text_offset says {offset} for {token!r}, and there is {text[place : place + 10]!r}.",
        )


@check("completions.suffix", "A suffix is filled up to", _HERE, "suffix")
async def suffix(ctx: Context) -> None:
    await ctx.completion(prompt="def add(a, b):\n    return ", suffix="\n\nprint(add(1, 2))\n")


@check("completions.best_of", "best_of of several gives the best one, and usage counts all", _HERE, "best_of")
async def best_of(ctx: Context) -> None:
    answer = await ctx.completion(best_of=3, n=1, temperature=1.0, max_tokens=8)
    require(len(answer["choices"]) == 1, f"n is 1, and there are {len(answer['choices'])} choices.")
    if answer["choices"][0]["finish_reason"] != "length":
        raise Unsupported("The model ends its answer within eight tokens, so that nothing can be seen.")
    count = answer["usage"]["completion_tokens"]
    require(count >= 8 + 2, f"best_of is 3, and usage counts the {count} tokens of one: it seems to be ignored.")


@check("completions.best_of_errors", "best_of under n is 400", _HERE, "best_of")
async def best_of_errors(ctx: Context) -> None:
    await ctx.completion(best_of=2, n=1, temperature=1.0, max_tokens=2)
    body = {"model": ctx.model, "prompt": _PROMPT, **STEADY, "n": 3, "best_of": 2}
    must_be_error(await ctx.post(COMPLETIONS_PATH, body), 400)


@check("completions.logit_bias", "A bias of 100 forces a token", _HERE, "logit_bias")
async def logit_bias(ctx: Context) -> None:
    answer = await ctx.completion(logit_bias={"65": 100}, max_tokens=6)
    text = _text(answer)
    if not text:
        raise Unsupported("Token 65 of this vocabulary does not show, so that nothing can be seen.")
    require(len(set(text.split(text[: max(len(text) // 6, 1)]))) == 1, f"The text is no token six times: {text!r}")


@check("completions.no_prompt", "A request with a prompt of a wrong type is 400", _HERE)
async def no_prompt(ctx: Context) -> None:
    await ctx.completion(max_tokens=1)
    must_be_error(await ctx.post(COMPLETIONS_PATH, {"model": ctx.model, "prompt": {"a": 1}}), 400)
