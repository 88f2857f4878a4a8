"""How tokens are chosen, what they were likely to be, and where the text is cut."""

from chatfleet.doctor.client import Json, Unsupported
from chatfleet.doctor.context import Collection, Context, message_of, need_text, said, user
from chatfleet.doctor.shapes import LOGPROBS, must_fit, require

collection = Collection()
check = collection.check

_PRINTABLE_IN_MOST_VOCABULARIES = 65
"""`b` where a vocabulary begins with the printable bytes, as GPT-2's does; `>` where bytes follow three control tokens,
as Llama's do; `A` where tokens are bytes."""


@check("sampling.stop", "A stop string cuts the text exactly there", "stop")
async def stop(ctx: Context) -> None:
    full = need_text(said(message_of(await ctx.chat())))
    middle = full[len(full) // 3 : len(full) // 3 + 3]
    for stops in (middle, ["\ue000", "\ue001", "\ue002", middle]):
        answer = await ctx.chat(stop=stops)
        text = said(message_of(answer))
        require(middle not in text, f"The stop string {middle!r} is in the text: {text!r}")
        cut = full.partition(middle)[0]
        if full.startswith(text) or text.startswith(cut):
            require(text == cut, f"With the stop string {middle!r} the text is {text!r}, not {cut!r}.")
            reason = answer["choices"][0]["finish_reason"]
            require(reason == "stop", f"finish_reason is {reason!r} where a stop string ended the answer.")


@check("sampling.seed", "A seed makes an answer repeat", "seed")
async def seed(ctx: Context) -> None:
    texts = [said(message_of(await ctx.chat(seed=11, temperature=1.0))) for _ in range(2)]
    require(need_text(texts[0]) == texts[1], f"The same seed gives {texts[0]!r} and {texts[1]!r}.")
    others = {said(message_of(await ctx.chat(seed=number, temperature=2.0))) for number in (12, 13, 14, 15)}
    if others == {texts[0]}:
        raise Unsupported("The model gives the same answer to every seed, so that nothing can be seen.")


@check("sampling.temperature", "At temperature 0 an answer repeats")
async def temperature(ctx: Context) -> None:
    texts = [said(message_of(await ctx.chat(seed=number))) for number in (1, 2)]
    require(texts[0] == texts[1], f"At temperature 0 two answers differ: {texts[0]!r} and {texts[1]!r}.")


@check("sampling.top_p", "A top_p of almost nothing leaves the likeliest token", "top_p")
async def top_p(ctx: Context) -> None:
    await must_leave_no_choice(ctx, top_p=0.000001)


async def must_leave_no_choice(ctx: Context, **setting: float) -> None:
    """Raises Failed where the temperature matters in spite of a setting that leaves only the likeliest token."""
    texts = [said(message_of(await ctx.chat(**setting, seed=3, temperature=value))) for value in (0.3, 2.0, 2.0)]
    if texts[1] != texts[2]:
        raise Unsupported("Two answers to the same request differ, so that nothing can be seen.")
    require(
        texts[0] == need_text(texts[1]),
        f"With {setting} the text is {texts[0]!r} at temperature 0.3 and {texts[1]!r} at 2.",
    )


@check("sampling.penalties", "Penalties change what is repeated", "frequency_penalty", "presence_penalty")
async def penalties(ctx: Context) -> None:
    await ctx.chat(frequency_penalty=-2, presence_penalty=2)
    repeated = user("Write the word yes again and again: yes yes yes yes yes yes yes yes yes yes yes yes")
    plain = said(message_of(await ctx.chat(messages=repeated, max_tokens=64)))
    changed = said(message_of(await ctx.chat(messages=repeated, max_tokens=64, frequency_penalty=2.0)))
    words = plain.split()
    if len(words) - len(set(words)) < 8:
        raise Unsupported("Both are taken; the model repeats too little for more to be seen.")
    require(plain != changed, f"A frequency_penalty of 2 changes nothing about {plain!r}.")


@check("sampling.logit_bias", "A bias of 100 forces a token", "logit_bias")
async def logit_bias(ctx: Context) -> None:
    answer = await ctx.chat(logit_bias={str(_PRINTABLE_IN_MOST_VOCABULARIES): 100}, max_tokens=6)
    text = said(message_of(answer))
    if not text:
        raise Unsupported("Token 65 of this vocabulary does not show, so that nothing can be seen.")
    size, rest = divmod(len(text), answer["usage"]["completion_tokens"])
    require(
        size > 0 and rest == 0 and text == text[:size] * (len(text) // size),
        f"A bias of 100 for one token must give that token alone, but the text is {text!r}.",
    )


@check("sampling.logit_bias_forbids", "A bias of -100 forbids a token", "logit_bias")
async def logit_bias_forbids(ctx: Context) -> None:
    entry = await _first_entry(ctx)
    text = need_text(entry["token"])
    ids = await token_ids(ctx, text)
    if len(ids) != 1:
        raise Unsupported("The ids of tokens cannot be found out: the server has no /tokenize.")
    answer = await ctx.chat(max_tokens=1, logprobs=True, logit_bias={str(ids[0]): -100})
    found = answer["choices"][0]["logprobs"]["content"][0]["token"]
    require(found != text, f"The token {text!r} ({ids[0]}) has a bias of -100 and is generated all the same.")


async def _first_entry(ctx: Context) -> Json:
    answer = await ctx.chat(max_tokens=1, logprobs=True)
    entries = (answer["choices"][0].get("logprobs") or {}).get("content")
    if not entries:
        raise Unsupported("There are no logprobs, by which the tokens of an answer could be seen.")
    return dict(entries[0])


async def token_ids(ctx: Context, text: str) -> list[int]:
    """By the endpoint that vLLM and others have for it; empty where there is none."""
    for path in ("/tokenize", "//tokenize"):
        body = {"model": ctx.model, "prompt": text, "content": text, "add_special_tokens": False}
        answer = await ctx.post(path, body)
        if answer.status == 200:
            return list(answer.json()["tokens"])
    return []


@check("sampling.logprobs", "logprobs are of the tokens of the text, byte for byte", "logprobs")
async def logprobs(ctx: Context) -> None:
    answer = await ctx.chat(logprobs=True)
    entries = check_logprobs(answer["choices"][0].get("logprobs"))
    text = said(message_of(answer)).encode()
    joined = b"".join(bytes(entry["bytes"] or ()) for entry in entries)
    require(joined == text, f"The bytes of the tokens are {joined!r}, and the text is {text!r}.")


@check("sampling.top_logprobs", "top_logprobs are the likeliest tokens, in order", "top_logprobs", "logprobs")
async def top_logprobs(ctx: Context) -> None:
    answer = await ctx.chat(logprobs=True, top_logprobs=4)
    entries = check_logprobs(answer["choices"][0].get("logprobs"), 4)
    for entry in entries:
        best = entry["top_logprobs"][0]["logprob"]
        require(entry["logprob"] <= best + 1e-4, "The likeliest of top_logprobs is less likely than the token itself.")


def check_logprobs(found: object, top: int | None = None) -> list[Json]:
    """The entries of a choice's `logprobs`. Raises Failed unless they have the reference's form and order."""
    require(found is not None, "logprobs were asked for, and logprobs is null.")
    must_fit(found, LOGPROBS, "logprobs")
    assert isinstance(found, dict)
    entries: list[Json] = found["content"] or []
    require(entries, "logprobs has no entries.")
    for entry in entries:
        likeliest = [alternative["logprob"] for alternative in entry["top_logprobs"]]
        require(max([entry["logprob"], *likeliest]) <= 1e-6, f"A log probability is over 0: {entry}")
        require(likeliest == sorted(likeliest, reverse=True), f"top_logprobs are not in order: {likeliest}")
        require(top in (None, len(likeliest)), f"top_logprobs has {len(likeliest)} entries, not {top}.")
    return entries


@check("sampling.no_logprobs", "No logprobs where none were asked for")
async def no_logprobs(ctx: Context) -> None:
    found = (await ctx.chat())["choices"][0].get("logprobs")
    require(found is None, "There are logprobs that nobody asked for.")
