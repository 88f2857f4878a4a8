"""/v1/embeddings."""

from typing import Annotated, Literal

from pydantic import Field

from chatfleet.protocol.common import MAX_MODEL_CHARS, EmbeddingUsage, RequestModel, TokenIds, WireModel

MAX_INPUTS = 2048

Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[TokenIds, Field(min_length=1)]


class EmbeddingRequest(RequestModel):
    input: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    )
    model: str | None = Field(default=None, max_length=MAX_MODEL_CHARS)
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None

    def inputs(self) -> list[str | list[int]]:
        """The inputs, one entry each, whatever form they came in."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [[token for token in self.input if isinstance(token, int)]]
        return [item for item in self.input if not isinstance(item, int)]


class Embedding(WireModel):
    """`embedding`: floats, or base64 of little-endian float32 values."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingResponse(WireModel):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
