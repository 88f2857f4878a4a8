"""/v1/tokenize and /v1/detokenize, with vLLM's fields."""

from typing import Self

from pydantic import Field, model_validator

from chatfleet.protocol.chat import ChatMessage, Tool
from chatfleet.protocol.common import MAX_MODEL_CHARS, RequestModel, TokenIds, WireModel


class TokenizeRequest(RequestModel):
    """A prompt, or messages as the chat template renders them."""

    model: str | None = Field(default=None, max_length=MAX_MODEL_CHARS)
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=4096)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    add_generation_prompt: bool = True
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class TokenizeResponse(WireModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestModel):
    model: str | None = Field(default=None, max_length=MAX_MODEL_CHARS)
    tokens: TokenIds


class DetokenizeResponse(WireModel):
    prompt: str
