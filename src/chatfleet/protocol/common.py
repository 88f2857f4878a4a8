"""What the APIs share: the request base, sampling fields, usage, the error body."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_BIASES = 1024
MAX_BAD_WORDS = 128
MAX_BAD_WORD_TOKENS = 64
MAX_MODEL_CHARS = 512

JsonObject = dict[str, Any]
PromptLogprobs = list[dict[str, JsonObject] | None]
"""vLLM's form, by position: token id to `logprob`, `rank` (from 1) and `decoded_token`. None for the first."""
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class WireModel(BaseModel):
    """Base of what we send. Fields that were not set are left out of the JSON."""

    model_config = ConfigDict(extra="forbid")

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_unset=True).encode()


class RequestModel(BaseModel):
    """Base of what clients send. Fields that we do not know are kept, to be named to the client."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    def unknown_fields(self, prefix: str = "") -> Iterator[str]:
        """Paths of the fields nobody knows, such as `foo` or `messages[0].bar`."""
        for name in self.model_extra or ():
            yield f"{prefix}{name}"
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, RequestModel):
                yield from value.unknown_fields(f"{prefix}{name}.")
            elif isinstance(value, list) and value and isinstance(value[0], RequestModel):
                for index, item in enumerate(value):
                    if isinstance(item, RequestModel):
                        yield from item.unknown_fields(f"{prefix}{name}[{index}].")


def _finite(value: float) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("must be a finite number")
    return value


Number = Annotated[float, AfterValidator(_finite)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _token_biases(value: Any) -> Any:
    """Checked before the entries are: millions of bad ones would be millions of complaints."""
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_BIASES:
        raise ValueError(f"may have at most {MAX_BIASES} entries")
    try:
        return {int(key): bias for key, bias in value.items()}
    except ValueError as exc:
        raise ValueError("its keys must be token ids") from exc


TokenBiases = Annotated[dict[int, Annotated[Number, Field(ge=-100, le=100)]], BeforeValidator(_token_biases)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
BadWord = Annotated[str, Field(min_length=1, max_length=256)]
BadWordIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_BAD_WORD_TOKENS)]


class StreamOptions(RequestModel):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchemaFormat(RequestModel):
    """The `json_schema` of a response format. `strict` changes nothing: answers always are what the schema says."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    json_schema: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestModel):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: Annotated[list[JsonObject], Field(fail_fast=True)] | None = None
    triggers: Annotated[list[str], Field(fail_fast=True)] | None = None
    format: JsonObject | None = None

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("a response format of type json_schema needs json_schema")
        if self.type not in ("text", "json_schema") and self.json_schema is not None:
            raise ValueError(f"json_schema goes with type json_schema, not with {self.type}")
        if self.type != "structural_tag" and (self.structures or self.triggers or self.format):
            raise ValueError(f"structures, triggers and format go with type structural_tag, not with {self.type}")
        return self


class StructuredOutputs(RequestModel):
    """vLLM's: exactly one of them says what the answer must be."""

    json_value: JsonObject | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: JsonObject | str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [self.json_value, self.regex, self.choice, self.grammar, self.json_object or None, self.structural_tag]
        if sum(value is not None for value in given) != 1:
            raise ValueError("give exactly one of json, regex, choice, grammar, json_object and structural_tag")
        return self


class SamplingFields(RequestModel):
    """Sampling as both completion APIs take it. None is "as the API's default"."""

    model: str | None = Field(default=None, max_length=MAX_MODEL_CHARS)
    n: int | None = Field(default=None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: Number | None = Field(default=None, ge=0, le=2)
    top_p: Number | None = Field(default=None, ge=0, le=1)
    presence_penalty: Number | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    logit_bias: TokenBiases | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None
    # vLLM's extensions.
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    min_p: Number | None = Field(default=None, ge=0, le=1)
    repetition_penalty: Number | None = Field(default=None, ge=0.01, le=100)
    min_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=128)
    ignore_eos: bool | None = None
    bad_words: list[BadWord] | None = Field(default=None, max_length=MAX_BAD_WORDS)
    structured_outputs: StructuredOutputs | None = None
    prompt_logprobs: int | None = Field(default=None, ge=0, le=20)
    return_token_ids: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    # Hugging Face's.
    bad_words_ids: list[BadWordIds] | None = Field(default=None, max_length=MAX_BAD_WORDS)

    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def stop_strings(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


class PromptTokensDetails(WireModel):
    """`cached_tokens` is left out where the engine does not tell."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(WireModel):
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(WireModel):
    """Token counts of one request; `completion_tokens` sums all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class EmbeddingUsage(WireModel):
    prompt_tokens: int
    total_tokens: int


class ErrorBody(WireModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(WireModel):
    error: ErrorBody


class ModelCard(WireModel):
    """An entry of /v1/models. `max_model_len` is vLLM's addition: the context length in tokens."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "chatfleet"
    max_model_len: int | None = None


class ModelList(WireModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
