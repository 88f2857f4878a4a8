"""What the gateway reads and changes of a request's body. The rest is the worker's, byte for byte."""

import json
from collections import Counter
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
from pydantic import Field

from chatfleet.core.errors import InvalidRequest
from chatfleet.core.fleet import WorkerInfo
from chatfleet.dispatch.policies import Affinity, Policy
from chatfleet.dispatch.prefix_tree import MAX_KEY_BYTES
from chatfleet.http.body import check_depth, validate_body
from chatfleet.http.openapi import REQUEST_MODELS
from chatfleet.protocol.common import MAX_MODEL_CHARS, RequestModel

_VLLM_FIELDS: Final = frozenset(
    {
        "add_generation_prompt",
        "add_special_tokens",
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

_OWN_FIELDS: Final = ("store",)
"""What the gateway does itself, and no server that is not ours is asked to do once more."""

KNOWN_FIELDS: Final = _VLLM_FIELDS.union(*(model.model_fields for model in REQUEST_MODELS))
"""Request fields that servers which are not ours may get. Others could reach into them: a template that is run, the
transfer of caches, a priority over other clients."""


_ROUTING_NAMES: Final = ("model", "stream")
_NOTHING: Final = msgspec.Raw(b"")
_TRUE_JSON: Final = b"true"
_TRUE: Final = msgspec.Raw(_TRUE_JSON)
_NO_AFFINITY: Final = Affinity()


class RoutingFields(msgspec.Struct):
    """What routing needs of a body, and whether the answer is to be kept, which the worker checks."""

    model: Annotated[str, msgspec.Meta(max_length=MAX_MODEL_CHARS)] | None = None
    stream: bool | None = None
    store: msgspec.Raw = _NOTHING

    @property
    def is_stored(self) -> bool:
        return bytes(self.store) == _TRUE_JSON


_DECODER: Final = msgspec.json.Decoder(RoutingFields)
_FIELDS_DECODER: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _AffinityFields(msgspec.Struct):
    messages: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    user: msgspec.Raw = _NOTHING


class _WordedRoutingFields(RequestModel):
    """The same for pydantic, which words complaints as the worker does."""

    model: str | None = Field(default=None, max_length=MAX_MODEL_CHARS)
    stream: bool | None = None
    store: Any = None


def read_routing(body: bytes) -> RoutingFields:
    """The fields that decide where a request goes. Raises InvalidRequest.

    What another JSON reader could understand in another way is refused: a field that is there twice, and bytes that
    are no text.
    """
    check_depth(body)
    if not body.isascii():
        _check_text(body)
    try:
        routing = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        worded = validate_body(_WordedRoutingFields, body)
        routing = RoutingFields(worded.model, worded.stream, _TRUE if worded.store is True else _NOTHING)
    if body.count(b'"model"') > 1 or body.count(b'"stream"') > 1 or b"\\u00" in body:
        _check_repeated(body)
    return routing


def _check_text(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"The request body is not valid UTF-8: byte {exc.start} is wrong.") from exc


def _check_repeated(body: bytes) -> None:
    """Raises InvalidRequest if a routing field is there twice, be it with escaped letters."""
    pairs: list[tuple[str, object]] = []

    def remember(found: list[tuple[str, object]]) -> None:
        nonlocal pairs
        pairs = found  # the outermost object is the last to be complete

    json.loads(body, object_pairs_hook=remember, parse_int=str, parse_float=str)
    counts = Counter(name for name, _ in pairs if name in _ROUTING_NAMES)
    for name, count in counts.items():
        if count > 1:
            raise InvalidRequest(f"'{name}' is given {count} times. Give it once.", param=name)


def read_affinity(body: bytes, policy: Policy, session: bytes | None) -> Affinity:
    """What `policy` wants to know of a request; `session` is what its header says. The body has been read before."""
    if not (policy.uses_prefix or policy.uses_session):
        return _NO_AFFINITY
    try:
        fields = msgspec.json.decode(body, type=_AffinityFields)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _NO_AFFINITY  # the worker says what is wrong
    prefix = next((part for part in (fields.messages, fields.prompt, fields.input) if part), b"")
    if not policy.uses_session:
        return Affinity(prefix=bytes(memoryview(prefix)[:MAX_KEY_BYTES]))
    if session is not None:
        return Affinity(session=session.decode("latin-1"))
    user = bytes(fields.user)
    return Affinity(session=msgspec.json.decode(user, type=str) if user.startswith(b'"') else "")


@lru_cache(maxsize=1024)
def _allowed_fields(more: tuple[str, ...]) -> frozenset[str]:
    return KNOWN_FIELDS.union(more)


def build_parameters(body: bytes, worker: WorkerInfo, named: str | None, model: str) -> tuple[bytes, list[str]]:
    """The body for this worker: it names `model`, and a server that is not ours gets only fields that we know or that
    it was registered with. The second value names what was left out, and not heeded either."""
    is_ours = worker.kind == "chatfleet"
    if is_ours and named == model:
        return body, []
    try:
        fields = _FIELDS_DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidRequest(f"The request body is not valid JSON: {exc}.") from exc
    allowed = fields.keys() if is_ours else _allowed_fields(worker.allowed_fields)
    dropped = [] if fields.keys() <= allowed else [name for name in fields if name not in allowed]
    heeded = [] if is_ours else [name for name in _OWN_FIELDS if name in fields]
    if not (dropped or heeded) and named == model:
        return body, []
    for name in (*dropped, *heeded):
        del fields[name]
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields), dropped
