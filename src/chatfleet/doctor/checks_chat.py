"""/v1/chat/completions: what is in a whole answer."""

from chatfleet.doctor.client import Unsupported
from chatfleet.doctor.context import Collection, Context, message_of, need_text, said, user
from chatfleet.doctor.shapes import CHAT_TO_THE_LETTER, must_fit, require

collection = Collection()
check = collection.check

_PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@check("chat.whole", "A whole answer has the reference's form")
async def whole(ctx: Context) -> None:
    answer = await ctx.chat()
    require(len(answer["choices"]) == 1, f"There are {len(answer['choices'])} choices where one was asked for.")
    require(answer["choices"][0]["index"] == 0, "The index of the only choice is not 0.")
    reason = answer["choices"][0]["finish_reason"]
    require(reason in ("stop", "length"), f"finish_reason is {reason!r} for a plain answer.")
    need_text(said(message_of(answer)))


@check("chat.schema", "Fields that the reference requires are there, null or not")
async def schema(ctx: Context) -> None:
    must_fit(await ctx.chat(), CHAT_TO_THE_LETTER, "The answer")


@check("chat.roles", "Messages of every role are taken")
async def roles(ctx: Context) -> None:
    await ctx.chat(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello!", "name": "ada"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "And what is Paris?"},
        ]
    )


@check("chat.developer", "Developer messages are taken", "developer", "role")
async def developer(ctx: Context) -> None:
    await ctx.chat(messages=[{"role": "developer", "content": "Be brief."}, *user("Hello!")])


@check("chat.parts", "Content may be a list of text parts", "content")
async def parts(ctx: Context) -> None:
    content = [{"type": "text", "text": "What is"}, {"type": "text", "text": " Paris?"}]
    await ctx.chat(messages=[{"role": "user", "content": content}])


@check("chat.images", "Images are looked at", "image_url", "image", "content", "messages", "multimodal", "mmproj")
async def images(ctx: Context) -> None:
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": _PIXEL}}]
    await ctx.chat(messages=[{"role": "user", "content": content}])


@check("chat.max_tokens", "max_tokens ends the answer, with finish_reason length")
async def max_tokens(ctx: Context) -> None:
    await _cut_by(ctx, "max_tokens")


@check("chat.max_completion_tokens", "max_completion_tokens does the same", "max_completion_tokens")
async def max_completion_tokens(ctx: Context) -> None:
    await _cut_by(ctx, "max_completion_tokens")


async def _cut_by(ctx: Context, field: str) -> None:
    limits = {"max_tokens": None} | {field: 3}
    answer = await ctx.chat(**{name: value for name, value in limits.items() if value or name != "max_tokens"})
    count, reason = answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]
    require(count <= 3, f"{count} tokens were generated where {field} is 3.")
    if reason == "stop":
        raise Unsupported("The model ends its answer within three tokens, so that nothing can be seen.")
    require(reason == "length", f"finish_reason is {reason!r} where {field} ended the answer.")
    require(count == 3, f"The answer ended at {field}, which is 3, and usage has {count} tokens.")


@check("chat.usage", "Usage counts what was read and written")
async def usage(ctx: Context) -> None:
    short, long = await ctx.chat(), await ctx.chat(messages=user("Tell me about the city of Paris. " * 10))
    counts = [answer["usage"]["prompt_tokens"] for answer in (short, long)]
    require(counts[0] > 0, "prompt_tokens is 0.")
    require(counts[1] > counts[0], f"A prompt ten times as long has {counts[1]} tokens, the short one {counts[0]}.")
    for answer in (short, long):
        details = answer["usage"].get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens") or 0
        require(0 <= cached <= answer["usage"]["prompt_tokens"], f"cached_tokens is {cached} of fewer prompt tokens.")
    if said(message_of(short)):
        require(short["usage"]["completion_tokens"] > 0, "completion_tokens is 0, and there is text.")


@check("chat.fingerprint", "system_fingerprint tells configurations apart", "system_fingerprint")
async def fingerprint(ctx: Context) -> None:
    first, second = await ctx.chat(), await ctx.chat()
    found = [answer.get("system_fingerprint") for answer in (first, second)]
    if found[0] is None:
        raise Unsupported("There is no system_fingerprint in the answer.")
    require(isinstance(found[0], str) and found[0], f"system_fingerprint is {found[0]!r}, not a string.")
    require(found[0] == found[1], f"system_fingerprint changes from request to request: {found[0]}, {found[1]}.")


@check("chat.ids", "Every answer has an id of its own")
async def ids(ctx: Context) -> None:
    first, second = await ctx.chat(), await ctx.chat()
    require(first["id"] != second["id"], f"Two answers have the id {first['id']!r}.")
    require(abs(first["created"] - second["created"]) < 3600, "`created` is no time in seconds.")


@check("chat.n", "n choices are given, with their indices", "n")
async def several(ctx: Context) -> None:
    answer = await ctx.chat(n=3, temperature=1.0)
    indices = sorted(choice["index"] for choice in answer["choices"])
    require(indices == [0, 1, 2], f"n is 3, and the choices have the indices {indices}.")


@check("chat.bookkeeping", "Fields that only name things are taken", "metadata", "user", "service_tier")
async def bookkeeping(ctx: Context) -> None:
    await ctx.chat(user="someone", metadata={"purpose": "doctor"}, service_tier="auto")


@check("chat.cache_keys", "safety_identifier and prompt_cache_key are taken", "safety_identifier", "prompt_cache_key")
async def cache_keys(ctx: Context) -> None:
    await ctx.chat(safety_identifier="someone", prompt_cache_key="doctor")


@check("chat.prediction", "A prediction is taken", "prediction")
async def prediction(ctx: Context) -> None:
    await ctx.chat(prediction={"type": "content", "content": "Paris is the capital of France."})


@check("chat.modalities", "Text may be asked for as a modality", "modalities")
async def modalities(ctx: Context) -> None:
    await ctx.chat(modalities=["text"])


@check("chat.verbosity", "verbosity is taken", "verbosity")
async def verbosity(ctx: Context) -> None:
    await ctx.chat(verbosity="low")
