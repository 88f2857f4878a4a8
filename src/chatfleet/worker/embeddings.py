"""Embeddings: inputs of any form to vectors, floats or base64."""

import base64
import math
import sys
from array import array

from chatfleet.core.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from chatfleet.protocol.common import EmbeddingUsage
from chatfleet.protocol.embeddings import Embedding, EmbeddingRequest, EmbeddingResponse
from chatfleet.worker.metrics import EMBEDDINGS
from chatfleet.worker.sampling import check_prompt_vocabulary
from chatfleet.worker.service import WorkerService


async def create_embeddings(service: WorkerService, request: EmbeddingRequest) -> EmbeddingResponse:
    """Cancelling it drops what is not computed yet. Raises ServingError."""
    model = service.model_name(request.model)
    capabilities = service.capabilities
    if capabilities.embedding_dim is None:
        raise UnsupportedParameter("This model makes no embeddings.", param="model")
    if request.dimensions is not None and request.dimensions > capabilities.embedding_dim:
        raise InvalidRequest(
            f"'dimensions' is {request.dimensions}, but this model's embeddings have {capabilities.embedding_dim}.",
            param="dimensions",
        )
    prompts = [await service.encode_prompt(text, "input") for text in request.inputs()]
    for index, token_ids in enumerate(prompts):
        check_prompt_vocabulary(token_ids, "input", capabilities)
        if len(token_ids) > capabilities.context_length:
            raise ContextLengthExceeded(
                prompt_tokens=len(token_ids),
                max_tokens=None,
                context_length=capabilities.context_length,
                param=f"input[{index}]" if len(prompts) > 1 else "input",
            )
    (permit,) = service.admission.reserve(1)
    try:
        async with permit:
            vectors = await service.engine.embed(prompts)
    finally:
        permit.release()
    prompt_tokens = sum(map(len, prompts))
    service.metrics.at(EMBEDDINGS).prompt_tokens += prompt_tokens
    return EmbeddingResponse(
        object="list",
        data=[
            Embedding(
                object="embedding",
                index=index,
                embedding=_rendered(shortened(vector, request.dimensions), request.encoding_format),
            )
            for index, vector in enumerate(vectors)
        ],
        model=model,
        usage=EmbeddingUsage(prompt_tokens=prompt_tokens, total_tokens=prompt_tokens),
    )


def shortened(vector: bytes, dimensions: int | None) -> "array[float]":
    """The first `dimensions` of a little-endian float32 vector, L2-normalised anew."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    if dimensions is None or dimensions == len(values):
        return values
    values = values[:dimensions]
    norm = math.sqrt(math.fsum(value * value for value in values))
    return array("f", (value / norm for value in values)) if norm else values


def _rendered(values: "array[float]", encoding_format: str | None) -> list[float] | str:
    if encoding_format != "base64":
        return values.tolist()
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode()
