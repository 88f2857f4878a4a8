"""What the gateway reads and changes of a request's body. The rest is the worker's, byte for byte."""

import asyncio
from typing import Annotated, Final

import msgspec
from pydantic import Field

from chatfleet.core.errors import InvalidRequest
from chatfleet.core.fleet import WorkerInfo
from chatfleet.http.body import OFF_LOOP_BYTES, check_depth, validate_body
from chatfleet.http.openapi import REQUEST_MODELS
from chatfleet.protocol.common import MAX_MODEL_CHARS, RequestModel

_VLLM_FIELDS: Final = frozenset(
    {
        "add_generation_prompt",
        "add_special_tokens",
        "bad_words",
        "continue_final_message",
        "include_stop_str_in_output",
        "prompt_logprobs",
        "return_token_ids",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "structured_outputs",
        "truncate_prompt_tokens",
    }
)
"""Fields of vLLM's that only concern the request itself, so that any server may have them."""

KNOWN_FIELDS: Final = _VLLM_FIELDS.union(*(model.model_fields for model in REQUEST_MODELS))
"""Request fields that servers which are not ours may get. Others could reach into them: a template that is run, the
transfer of caches, a priority over other clients."""


class RoutingFields(msgspec.Struct):
    """What routing needs of a body."""

    model: Annotated[str, msgspec.Meta(max_length=MAX_MODEL_CHARS)] | None = None
    stream: bool | None = None


class _WordedRoutingFields(RequestModel):
    """The same for pydantic, which words complaints as the worker does."""

    model: str | None = Field(default=None, max_length=MAX_MODEL_CHARS)
    stream: bool | None = None


async def read_routing(body: bytes) -> RoutingFields:
    """The fields that decide where a request goes. Raises InvalidRequest."""
    if len(body) > OFF_LOOP_BYTES:
        return await asyncio.to_thread(_read_routing, body)
    return _read_routing(body)


def _read_routing(body: bytes) -> RoutingFields:
    check_depth(body)
    try:
        return msgspec.json.decode(body, type=RoutingFields)
    except (msgspec.DecodeError, UnicodeDecodeError):
        worded = validate_body(_WordedRoutingFields, body)
        return RoutingFields(model=worded.model, stream=worded.stream)


def build_parameters(body: bytes, worker: WorkerInfo, named: str | None, model: str) -> tuple[bytes, list[str]]:
    """The body for this worker: it names `model`, and a server that is not ours gets only fields that we know or that
    it was registered with. The second value names what was left out."""
    is_ours = worker.kind == "chatfleet"
    if is_ours and named == model:
        return body, []
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidRequest(f"The request body is not valid JSON: {exc}.") from exc
    allowed = fields.keys() if is_ours else KNOWN_FIELDS.union(worker.allowed_fields)
    dropped = [name for name in fields if name not in allowed]
    if not dropped and named == model:
        return body, []
    for name in dropped:
        del fields[name]
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields), dropped
