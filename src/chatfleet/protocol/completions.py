"""/v1/completions."""

from typing import Annotated, Literal

from pydantic import Field

from chatfleet.protocol.common import FinishReason, PromptLogprobs, SamplingFields, TokenIds, Usage, WireModel

Prompt = (
    str
    | Annotated[TokenIds, Field(min_length=1)]
    | Annotated[list[str], Field(min_length=1, fail_fast=True)]
    | Annotated[list[Annotated[TokenIds, Field(min_length=1)]], Field(min_length=1, fail_fast=True)]
)


class CompletionRequest(SamplingFields):
    prompt: Prompt
    max_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    best_of: int | None = Field(default=None, ge=1, le=128)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=5)
    suffix: str | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one entry each, whatever form they came in."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class CompletionLogprobs(WireModel):
    """Parallel lists, one entry a token. `text_offset` counts characters into prompt and completion."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None] | None


class CompletionChoice(WireModel):
    """A choice, whole or (in a stream, with `finish_reason` None until its last chunk) a part of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(WireModel):
    """The response, and each chunk of its stream: OpenAI uses one object for both."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | None = None
