"""/v1/embeddings."""

import base64
import math
import struct
from typing import Any

from chatfleet.doctor.client import Json, Unsupported
from chatfleet.doctor.context import Collection, Context
from chatfleet.doctor.shapes import EMBEDDINGS, must_be_error, must_fit, require

collection = Collection()
check = collection.check

_PATH = "/embeddings"
_FIELDS = ("embeddings", "embedding", "model", "pooling")


async def _embed(ctx: Context, given: Any, **fields: Any) -> Json:
    answer = await ctx.ask(_PATH, {"input": given, **fields})
    must_fit(answer, EMBEDDINGS, "The answer")
    usage = answer["usage"]
    require(usage["total_tokens"] == usage["prompt_tokens"] > 0, f"usage is {usage}.")
    return dict(answer)


@check("embeddings.float", "An embedding is a list of numbers", *_FIELDS)
async def floats(ctx: Context) -> None:
    vector = (await _embed(ctx, "a city", encoding_format="float"))["data"][0]["embedding"]
    require(isinstance(vector, list) and vector, "The embedding is no list of numbers.")
    require(all(math.isfinite(value) for value in vector), "The embedding has values that are no finite numbers.")
    require(any(vector), "The embedding is all zeros.")


@check("embeddings.base64", "The same as base64 of little-endian float32", *_FIELDS, "encoding_format")
async def as_base64(ctx: Context) -> None:
    floats = (await _embed(ctx, "a city", encoding_format="float"))["data"][0]["embedding"]
    text = (await _embed(ctx, "a city", encoding_format="base64"))["data"][0]["embedding"]
    require(isinstance(text, str), "With encoding_format base64 the embedding is no string.")
    packed = base64.b64decode(text, validate=True)
    require(len(packed) == 4 * len(floats), f"base64 has {len(packed)} bytes for {len(floats)} numbers.")
    values = struct.unpack(f"<{len(floats)}f", packed)
    near = all(math.isclose(a, b, rel_tol=1e-2, abs_tol=1e-3) for a, b in zip(values, floats, strict=True))
    require(near, "The numbers of base64 are others than those of float.")


@check("embeddings.several", "Several inputs give an embedding each, in their order", *_FIELDS, "input")
async def several(ctx: Context) -> None:
    texts = ["a city", "a river in the mountains", "1 + 1 = 2"]
    data = (await _embed(ctx, texts))["data"]
    require([item["index"] for item in data] == [0, 1, 2], "The embeddings are not in the order of the inputs.")
    alone = (await _embed(ctx, texts[2]))["data"][0]["embedding"]
    near = all(math.isclose(a, b, rel_tol=5e-2, abs_tol=1e-2) for a, b in zip(data[2]["embedding"], alone, strict=True))
    require(near, "An input has another embedding alone than among others.")


@check("embeddings.dimensions", "dimensions shortens an embedding", *_FIELDS, "dimensions", "matryoshka")
async def dimensions(ctx: Context) -> None:
    vector = (await _embed(ctx, "a city", dimensions=8))["data"][0]["embedding"]
    require(len(vector) == 8, f"dimensions is 8, and the embedding has {len(vector)}.")
    length = math.sqrt(math.fsum(value * value for value in vector))
    require(math.isclose(length, 1, abs_tol=0.02), f"The shortened embedding has the length {length:.3f}, not 1.")


@check("embeddings.errors", "A request without input is 400", *_FIELDS)
async def errors(ctx: Context) -> None:
    try:
        await _embed(ctx, "a city")
    except Unsupported:
        raise Unsupported("This model makes no embeddings.") from None
    must_be_error(await ctx.post(_PATH, {"model": ctx.model}), 400)
    must_be_error(await ctx.post(_PATH, {"model": ctx.model, "input": {"a": 1}}), 400)
