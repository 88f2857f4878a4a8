"""The paths that workers answer."""

from typing import Final, NamedTuple

from chatfleet.protocol.chat import ChatCompletion, ChatCompletionRequest
from chatfleet.protocol.common import RequestModel, WireModel
from chatfleet.protocol.completions import Completion, CompletionRequest
from chatfleet.protocol.embeddings import EmbeddingRequest, EmbeddingResponse
from chatfleet.protocol.tokenize import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse


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
        "/v1/chat/completions",
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
