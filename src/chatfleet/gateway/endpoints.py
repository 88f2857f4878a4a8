"""The paths that workers answer."""

from typing import Final, NamedTuple

from chatfleet.protocol.chat import ChatCompletion, ChatCompletionRequest
from chatfleet.protocol.common import RequestModel, WireModel
from chatfleet.protocol.completions import Completion, CompletionRequest
from chatfleet.protocol.embeddings import EmbeddingRequest, EmbeddingResponse
from chatfleet.protocol.tokenize import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse

STORED_PATH: Final = "/v1/chat/completions"
"""The path whose answers are kept for requests that want it, and below which they are found."""


class Endpoint(NamedTuple):
    """A path that workers answer, streaming if `streams` and asked to; `aliases` are other paths for the same."""

    path: str
    summary: str
    request: type[RequestModel]
    response: type[WireModel]
    streams: bool = False
    aliases: tuple[str, ...] = ()


ENDPOINTS: Final = (
    Endpoint(
        STORED_PATH,
        "Answer a conversation",
        ChatCompletionRequest,
        ChatCompletion,
        streams=True,
        aliases=("/",),
    ),
    Endpoint("/v1/completions", "Continue a text", CompletionRequest, Completion, streams=True),
    Endpoint("/v1/embeddings", "Embed texts", EmbeddingRequest, EmbeddingResponse),
    Endpoint("/v1/tokenize", "Turn text into tokens", TokenizeRequest, TokenizeResponse),
    Endpoint("/v1/detokenize", "Turn tokens into text", DetokenizeRequest, DetokenizeResponse),
)
