"""Stored completions: kept with `store`, found again, changed and deleted."""

from typing import Any, Final

from chatfleet.doctor.client import Json, Unsupported
from chatfleet.doctor.context import CHAT_PATH, Collection, Context, message_of
from chatfleet.doctor.shapes import STORED_CHAT, OneOf, Shape, must_be_error, must_fit, require

collection = Collection()
check = collection.check

_FIELDS: Final = ("store", "metadata", "stored")
_PAGE: Final[Shape] = {"object": OneOf(("list",)), "data": [dict], "has_more": bool}


async def _stored(ctx: Context, **fields: Any) -> Json:
    """A completion that was kept. Raises Unsupported where it cannot be had again."""
    answer = await ctx.chat(store=True, metadata={"purpose": "doctor"}, **fields)
    found = await ctx.get(f"{CHAT_PATH}/{answer['id']}")
    if found.status in (404, 405, 501):
        raise Unsupported(f"A completion with store cannot be had again: status {found.status}.")
    ctx.must_be_granted(found)
    return answer


@check("store.retrieve", "A stored completion can be had again", *_FIELDS)
async def retrieve(ctx: Context) -> None:
    answer = await _stored(ctx)
    found = (await ctx.get(f"{CHAT_PATH}/{answer['id']}")).json()
    must_fit(found, STORED_CHAT, "The stored completion")
    require(found["id"] == answer["id"], f"The stored completion has the id {found['id']!r}.")
    require(message_of(found)["content"] == message_of(answer)["content"], "The stored text is another one.")
    require((found.get("metadata") or {}).get("purpose") == "doctor", "The stored completion has not its metadata.")
    await ctx.delete(f"{CHAT_PATH}/{answer['id']}")


@check("store.list", "Stored completions are listed, by metadata too", *_FIELDS)
async def listed(ctx: Context) -> None:
    answer = await _stored(ctx)
    page = (await ctx.get(f"{CHAT_PATH}?limit=1&order=desc&metadata[purpose]=doctor")).json()
    must_fit(page, _PAGE, "The list")
    require(len(page["data"]) == 1, f"limit is 1, and {len(page['data'])} are listed.")
    ids = [each["id"] for each in page["data"]]
    require(page.get("first_id") == ids[0] and page.get("last_id") == ids[-1], "first_id or last_id is wrong.")
    none = (await ctx.get(f"{CHAT_PATH}?metadata[purpose]=no-such-purpose")).json()
    require(none["data"] == [], "Completions are listed that do not have the metadata asked for.")
    await ctx.delete(f"{CHAT_PATH}/{answer['id']}")


@check("store.messages", "The messages of a stored completion", *_FIELDS)
async def messages(ctx: Context) -> None:
    answer = await _stored(ctx)
    page = (await ctx.get(f"{CHAT_PATH}/{answer['id']}/messages")).json()
    must_fit(page, _PAGE, "The list")
    require([message.get("role") for message in page["data"]][:1] == ["user"], "The first message is not the user's.")
    require(all(message.get("id") for message in page["data"]), "A message has no id.")
    await ctx.delete(f"{CHAT_PATH}/{answer['id']}")


@check("store.update", "The metadata of a stored completion can be changed", *_FIELDS)
async def update(ctx: Context) -> None:
    path = f"{CHAT_PATH}/{(await _stored(ctx))['id']}"
    changed = await ctx.post(path, {"metadata": {"purpose": "changed"}})
    require(changed.status == 200, f"The status is {changed.status}, not 200. It says: {changed.start()}")
    found = (await ctx.get(path)).json()
    require(found.get("metadata") == {"purpose": "changed"}, f"metadata is {found.get('metadata')}.")
    await ctx.delete(path)


@check("store.delete", "A stored completion can be deleted", *_FIELDS)
async def delete(ctx: Context) -> None:
    answer = await _stored(ctx)
    deleted = (await ctx.delete(f"{CHAT_PATH}/{answer['id']}")).json()
    shape: Shape = {
        "object": OneOf(("chat.completion.deleted",)),
        "id": OneOf((answer["id"],)),
        "deleted": OneOf((True,)),
    }
    must_fit(deleted, shape, "The answer")
    must_be_error(await ctx.get(f"{CHAT_PATH}/{answer['id']}"), 404)


@check("store.stream", "A stream is stored too", *_FIELDS)
async def stream(ctx: Context) -> None:
    await _stored(ctx)
    chunks = await ctx.chat_stream(store=True, metadata={"purpose": "doctor"})
    found = await ctx.get(f"{CHAT_PATH}/{chunks[0]['id']}")
    require(found.status == 200, f"A stream with store cannot be had again: status {found.status}.")
    must_fit(found.json(), STORED_CHAT, "The stored completion")
    await ctx.delete(f"{CHAT_PATH}/{chunks[0]['id']}")


@check("store.not_kept", "What was not to be stored is not")
async def not_kept(ctx: Context) -> None:
    answer = await ctx.chat()
    found = await ctx.get(f"{CHAT_PATH}/{answer['id']}")
    require(found.status >= 400, "A completion without store can be had again.")
