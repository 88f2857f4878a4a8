"""/v1/chat/completions."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, model_validator

from chatfleet.protocol.common import (
    FinishReason,
    JsonObject,
    PromptLogprobs,
    RequestModel,
    SamplingFields,
    Usage,
    WireModel,
)

MAX_METADATA = 16

Role = Literal["developer", "system", "user", "assistant", "tool", "function"]


class TextPart(RequestModel):
    """`prompt_cache_breakpoint` changes nothing: the prefix cache finds by itself what it has."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: JsonObject | None = None


class RefusalPart(RequestModel):
    type: Literal["refusal"]
    refusal: str


class MediaPart(RequestModel):
    """A part that needs a model with that modality; the worker refuses what its model lacks."""

    type: Literal["image_url", "input_audio", "file", "video_url", "audio_url"]
    image_url: JsonObject | str | None = None
    input_audio: JsonObject | None = None
    file: JsonObject | None = None
    video_url: JsonObject | None = None
    audio_url: JsonObject | None = None


ContentPart = Annotated[TextPart | RefusalPart | MediaPart, Discriminator("type")]


class FunctionCall(RequestModel):
    name: str
    arguments: str


class ToolCall(RequestModel):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(RequestModel):
    """A message. `role` "function" and `function_call` are the older spelling of "tool" and `tool_calls`."""

    role: Role
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=128)
    tool_call_id: str | None = None
    refusal: str | None = None
    function_call: FunctionCall | None = None
    audio: JsonObject | None = None
    # vLLM's extensions: what an assistant thought.
    reasoning_content: str | None = None
    reasoning: str | None = None

    @model_validator(mode="after")
    def _has_what_its_role_needs(self) -> Self:
        if self.role in ("developer", "system", "user") and self.content is None:
            raise ValueError(f"a {self.role} message needs content")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a tool message needs tool_call_id, the id of the call that it answers")
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("only an assistant message has tool_calls")
        return self


class FunctionDefinition(RequestModel):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(RequestModel):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(RequestModel):
    name: str


class NamedTool(RequestModel):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(RequestModel):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=128)


class AllowedToolsChoice(RequestModel):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedToolsChoice, Discriminator("type")]


class PredictionPart(RequestModel):
    type: Literal["text"]
    text: str


class Prediction(RequestModel):
    """What most of the answer is expected to be: a hint, which changes nothing in the answer."""

    type: Literal["content"]
    content: str | Annotated[list[PredictionPart], Field(fail_fast=True)]


def _few_pairs(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_METADATA:
        raise ValueError(f"may have at most {MAX_METADATA} entries")
    return value


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], BeforeValidator(_few_pairs)
]


class ChatCompletionRequest(SamplingFields):
    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionDefinition] | None = Field(default=None, max_length=128)
    function_call: Literal["none", "auto"] | FunctionName | None = None
    modalities: list[str] | None = Field(default=None, max_length=16)
    audio: JsonObject | None = None
    prediction: Prediction | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    web_search_options: JsonObject | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    safety_identifier: str | None = Field(default=None, max_length=64)
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: JsonObject | None = None
    moderation: JsonObject | None = None
    # vLLM's extensions.
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class TopLogprob(WireModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """One generated token. `bytes` are exact where `token`, being text, cannot be."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(WireModel):
    content: list[TokenLogprob] | None
    refusal: None = None


class CalledFunction(WireModel):
    """`arguments` is a JSON text, as the model wrote it; in a stream a fragment of it."""

    name: str | None = None
    arguments: str


class AnsweredCall(WireModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(WireModel):
    """`reasoning_content` and `reasoning` (vLLM's older and newer name) are the same text."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[AnsweredCall] | None = None
    function_call: CalledFunction | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(WireModel):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason
    token_ids: list[int] | None = None


class ChatCompletion(WireModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: str | None = None
    system_fingerprint: str
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class CallDelta(WireModel):
    """What is new of one call: `id`, `type` and the function's name come first."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class Delta(WireModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[CallDelta] | None = None
    function_call: CalledFunction | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChunkChoice(WireModel):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] | None = None


class ChatCompletionChunk(WireModel):
    """One event of a stream. `usage` is there only under `stream_options.include_usage`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    service_tier: str | None = None
    system_fingerprint: str
    prompt_token_ids: list[int] | None = None
