"""vLLM's extensions, under vLLM's names. A server that does not look at one does not support it."""

import json
from typing import Any, Final

from chatfleet.doctor.checks_sampling import must_leave_no_choice, token_ids
from chatfleet.doctor.client import Json, Unsupported
from chatfleet.doctor.context import CHAT_PATH, Collection, Context, message_of, need_text, said, streamed, user
from chatfleet.doctor.shapes import must_be_error, must_fit, require

collection = Collection()
check = collection.check

_WRONG: Final = {"no": ["such", "value"]}
"""A value that no field of theirs can have."""


@check("extensions.tokenize", "Text can be turned into token ids and back", "tokenize")
async def tokenize(ctx: Context) -> None:
    text = "Grüße aus 北京 🙂"
    ids = await token_ids(ctx, text)
    if not ids:
        raise Unsupported("There is no /tokenize.")
    for path in ("/detokenize", "//detokenize"):
        answer = await ctx.post(path, {"model": ctx.model, "tokens": ids})
        if answer.status == 200:
            found = answer.json()
            back = found.get("prompt", found.get("content"))
            require(back == text, f"{text!r} comes back as {back!r}.")
            return
    raise Unsupported("There is no /detokenize.")


@check("extensions.top_k", "top_k 1 leaves the likeliest token", "top_k")
async def top_k(ctx: Context) -> None:
    await ctx.must_know("top_k", _WRONG)
    await must_leave_no_choice(ctx, top_k=1)


@check("extensions.min_p", "min_p 1 leaves the likeliest token", "min_p")
async def min_p(ctx: Context) -> None:
    await ctx.must_know("min_p", _WRONG)
    await must_leave_no_choice(ctx, min_p=1)


@check("extensions.repetition_penalty", "repetition_penalty is taken", "repetition_penalty")
async def repetition_penalty(ctx: Context) -> None:
    await ctx.must_know("repetition_penalty", _WRONG)
    await ctx.chat(repetition_penalty=1.2)


@check("extensions.ignore_eos", "ignore_eos goes on to max_tokens", "ignore_eos")
async def ignore_eos(ctx: Context) -> None:
    await ctx.must_know("ignore_eos", _WRONG)
    answer = await ctx.chat(messages=user("Say yes."), ignore_eos=True, max_tokens=96)
    _must_have(answer, 96)


@check("extensions.min_tokens", "min_tokens keeps the answer from ending sooner", "min_tokens")
async def min_tokens(ctx: Context) -> None:
    await ctx.must_know("min_tokens", _WRONG)
    answer = await ctx.chat(messages=user("Say yes."), min_tokens=96, max_tokens=96)
    _must_have(answer, 96)


def _must_have(answer: Json, count: int) -> None:
    found, reason = answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]
    require(found == count and reason == "length", f"There are {found} tokens ({reason}), not {count}.")


@check("extensions.stop_token_ids", "A stop token ends the text", "stop_token_ids")
async def stop_token_ids(ctx: Context) -> None:
    await ctx.must_know("stop_token_ids", _WRONG)
    before = await ctx.chat(return_token_ids=True)
    ids = before["choices"][0].get("token_ids") or await token_ids(ctx, said(message_of(before)))
    if not ids:
        raise Unsupported("The ids of tokens cannot be found out: the server has no /tokenize.")
    chosen = ids[len(ids) // 2]
    answer = await ctx.chat(stop_token_ids=[chosen])
    reason, count = answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]
    require(
        reason == "stop" and count == ids.index(chosen) + 1,
        f"Token {chosen}, the {ids.index(chosen) + 1}th, should stop the answer; it has {count} tokens ({reason}).",
    )


@check("extensions.include_stop", "include_stop_str_in_output leaves the stop string", "include_stop_str_in_output")
async def include_stop(ctx: Context) -> None:
    await ctx.must_know("include_stop_str_in_output", _WRONG)
    full = need_text(said(message_of(await ctx.chat())))
    middle = full[len(full) // 3 : len(full) // 3 + 3]
    text = said(message_of(await ctx.chat(stop=middle, include_stop_str_in_output=True)))
    if full.startswith(text):
        cut = full.partition(middle)[0] + middle
        require(text == cut, f"With the stop string {middle!r} left in, the text is {text!r}, not {cut!r}.")


@check("extensions.return_token_ids", "return_token_ids tells the ids", "return_token_ids")
async def return_token_ids(ctx: Context) -> None:
    await ctx.must_know("return_token_ids", _WRONG)
    answer = await ctx.chat(return_token_ids=True)
    prompt, output = answer.get("prompt_token_ids"), answer["choices"][0].get("token_ids")
    must_fit(prompt, [int], "prompt_token_ids")
    must_fit(output, [int], "token_ids")
    assert prompt is not None and output is not None
    counted = answer["usage"]
    require(
        [len(prompt), len(output)] == [counted["prompt_tokens"], counted["completion_tokens"]],
        f"There are {len(prompt)} and {len(output)} ids, and usage has {counted}.",
    )


@check("extensions.prompt_logprobs", "prompt_logprobs are those of the prompt", "prompt_logprobs")
async def prompt_logprobs(ctx: Context) -> None:
    await ctx.must_know("prompt_logprobs", _WRONG)
    answer = await ctx.chat(prompt_logprobs=1, max_tokens=2)
    found = answer.get("prompt_logprobs")
    must_fit(found, [(dict, None)], "prompt_logprobs")
    assert found is not None
    require(found and found[0] is None, "prompt_logprobs does not begin with null.")
    count = answer["usage"]["prompt_tokens"]
    require(len(found) == count, f"prompt_logprobs has {len(found)} entries for {count} tokens.")
    for entry in found[1:]:
        require(entry and all(each["logprob"] <= 1e-6 for each in entry.values()), f"An entry is {entry!r}.")


@check("extensions.continue", "continue_final_message goes on with the last message", "continue_final_message")
async def continue_final_message(ctx: Context) -> None:
    await ctx.must_know("continue_final_message", _WRONG)
    messages = [*user("Count to five."), {"role": "assistant", "content": "One, two, three,"}]
    fields: Json = {"continue_final_message": True, "add_generation_prompt": False}
    fresh = await ctx.chat(messages=messages, continue_final_message=False, add_generation_prompt=True)
    answer = await ctx.chat(messages=messages, **fields)
    counts = [each["usage"]["prompt_tokens"] for each in (answer, fresh)]
    require(counts[0] < counts[1], f"The prompt has {counts[0]} tokens, with a new turn it has {counts[1]}.")
    both = {"model": ctx.model, "messages": messages, "continue_final_message": True, "add_generation_prompt": True}
    must_be_error(await ctx.post(CHAT_PATH, both), 400)


@check("extensions.template", "chat_template_kwargs reach the template", "chat_template_kwargs")
async def template(ctx: Context) -> None:
    await ctx.must_know("chat_template_kwargs", 5)
    await ctx.chat(chat_template_kwargs={"enable_thinking": False})


async def _structured(ctx: Context, **constraint: Any) -> list[str]:
    """The text under a constraint of `structured_outputs`, whole and streamed."""
    await ctx.must_know("structured_outputs", 5)
    fields: Json = {"structured_outputs": constraint, "max_tokens": 64}
    answer = await ctx.chat(**fields)
    reason = answer["choices"][0]["finish_reason"]
    if reason == "length" and "json" in constraint:
        raise Unsupported("The model came to no end within the tokens it had, so that nothing can be seen.")
    require(reason == "stop", f"finish_reason is {reason!r}, not 'stop', for an answer that the constraint ends.")
    texts = [message_of(answer)["content"] or "", streamed(await ctx.chat_stream(**fields, temperature=1.0))]
    return [text.strip() if "json" in constraint else text for text in texts]


@check("extensions.structured_choice", "structured_outputs choice gives one of them", "structured_outputs", "choice")
async def choice(ctx: Context) -> None:
    words = ["yes", "no", "Grüße 🙂"]
    for text in await _structured(ctx, choice=words):
        require(text in words, f"The text is {text!r}, which is no choice.")


@check("extensions.structured_regex", "structured_outputs regex gives what it matches", "structured_outputs", "regex")
async def regex(ctx: Context) -> None:
    for text in await _structured(ctx, regex="[ab]{2}-[0-9]{3}"):
        fits = len(text) == 6 and set(text[:2]) <= set("ab") and text[2] == "-" and text[3:].isdecimal()
        require(fits, f"The text is {text!r}, which the regex does not match.")


@check(
    "extensions.structured_json", "structured_outputs json gives what the schema allows", "structured_outputs", "json"
)
async def structured_json(ctx: Context) -> None:
    schema = {
        "type": "object",
        "properties": {"good": {"type": "boolean"}},
        "required": ["good"],
        "additionalProperties": False,
    }
    for text in await _structured(ctx, json=schema):
        require(json.loads(text) in ({"good": True}, {"good": False}), f"The text is {text!r}, which is not allowed.")


@check("extensions.structured_grammar", "structured_outputs grammar gives its words", "structured_outputs", "grammar")
async def grammar(ctx: Context) -> None:
    for text in await _structured(ctx, grammar='root ::= "red" | "green " number\nnumber ::= [0-9] [0-9]'):
        head, _, number = text.partition(" ")
        fits = text == "red" or (head == "green" and len(number) == 2 and number.isdecimal())
        require(fits, f"The text is {text!r}, which the grammar does not have.")


@check("extensions.structured_errors", "Two constraints at once, or a wrong one, are 400", "structured_outputs")
async def structured_errors(ctx: Context) -> None:
    await ctx.must_know("structured_outputs", 5)
    for wrong in ({"choice": ["a"], "regex": "b"}, {"regex": "("}):
        body = {"model": ctx.model, "messages": user("Say yes."), "max_tokens": 8, "structured_outputs": wrong}
        must_be_error(await ctx.post(CHAT_PATH, body), 400)
