"""/v1/models, and what a server of an API answers to any client."""

from typing import Any
from urllib.parse import quote

from chatfleet.doctor.context import Collection, Context
from chatfleet.doctor.shapes import MODEL, MODELS, must_be_error, must_fit, require

collection = Collection()
check = collection.check


@check("models.list", "The models are listed, the one asked about among them")
async def listed(ctx: Context) -> None:
    answer = await ctx.get("/models")
    ctx.must_be_granted(answer)
    models = answer.json()
    must_fit(models, MODELS, "The answer")
    names = [card["id"] for card in models["data"]]
    require(ctx.model in names, f"{ctx.model} is not among the models listed: {', '.join(names[:20])}.")
    require(len(set(names)) == len(names), "A model is listed twice.")


@check("models.retrieve", "One model is described by its name", "models")
async def retrieved(ctx: Context) -> None:
    card = await _card(ctx)
    must_fit(card, MODEL, "The answer")
    require(card["id"] == ctx.model, f"id is {card['id']!r}, not {ctx.model!r}.")


async def _card(ctx: Context) -> Any:
    answer = await ctx.get(f"/models/{quote(ctx.model, safe='')}")
    if answer.status == 404:
        answer = await ctx.get(f"/models/{quote(ctx.model)}")
    ctx.must_be_granted(answer)
    return answer.json()


@check("models.unknown", "A model that does not exist is 404", "models")
async def unknown(ctx: Context) -> None:
    await _card(ctx)
    must_be_error(await ctx.get("/models/no-such-model-anywhere"), 404)
