"""What is kept of a request and its answer. Pure."""

import hashlib
import time
import uuid
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from chatfleet.protocol.chat import MAX_METADATA
from chatfleet.store.errors import NotWhole
from chatfleet.store.merging import merged

_NULL: Final = msgspec.Raw(b"null")


def owner_of(authorization: str | None) -> bytes:
    """Whose a request's completions are: the SHA-256 of its API key, which has been checked. None, for a gateway that
    has no keys, is everybody."""
    if authorization is None:
        return b""
    return hashlib.sha256(authorization.partition(" ")[2].strip().encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class Record:
    """A completion as it is kept. `completion`, `messages` and `metadata` are JSON; `asked` is the name of the model in
    the request, `model` that in the answer. `created` is Unix time in seconds, by the answer's word."""

    owner: bytes
    id: str
    created: int
    asked: str
    model: str
    metadata: bytes
    messages: bytes
    completion: bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.completion) + len(self.messages) + len(self.metadata)


@dataclass(frozen=True, slots=True)
class Exchanged:
    """A request that was answered well: `answer` is a JSON body, or the events of a stream."""

    owner: bytes
    request_id: str
    request: bytes
    answer: bytes
    is_stream: bool

    @property
    def size(self) -> int:
        return len(self.request) + len(self.answer)


class _Request(msgspec.Struct):
    """The fields of a request that are shown with its completion, in the request's own words."""

    messages: msgspec.Raw
    model: str | None = None
    metadata: msgspec.Raw = _NULL
    tools: msgspec.Raw = _NULL
    tool_choice: msgspec.Raw = _NULL
    response_format: msgspec.Raw = _NULL
    seed: msgspec.Raw = _NULL
    temperature: msgspec.Raw = _NULL
    top_p: msgspec.Raw = _NULL
    presence_penalty: msgspec.Raw = _NULL
    frequency_penalty: msgspec.Raw = _NULL
    user: msgspec.Raw = _NULL


_SHOWN: Final = (
    "tools",
    "tool_choice",
    "response_format",
    "seed",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
)


def record_of(exchanged: Exchanged) -> Record:
    """What to keep. Raises NotWhole for what cannot be: a stream without its end, or no JSON."""
    try:
        request = msgspec.json.decode(exchanged.request, type=_Request)
        messages = msgspec.json.decode(request.messages, type=list[dict[str, Any]])
        answer = merged(exchanged.answer) if exchanged.is_stream else _whole(exchanged.answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise NotWhole("the request or its answer is not what it should be") from exc
    answer_id = answer.get("id")
    if not isinstance(answer_id, str) or not answer_id:  # a server that is not ours may give none
        answer_id = f"chatcmpl-{uuid.uuid4().hex}"
    created, model = answer.get("created"), answer.get("model")
    created = created if isinstance(created, int) and 0 <= created < 2**62 else int(time.time())
    model = model if isinstance(model, str) else request.model or ""
    shown = {name: getattr(request, name) for name in _SHOWN}
    own = {"object": "chat.completion", "id": answer_id, "created": created, "model": model}
    completion = {
        "request_id": exchanged.request_id,
        **shown,
        "input_user": request.user,
        **{name: value for name, value in answer.items() if name != "metadata"},
        **own,
    }
    return Record(
        owner=exchanged.owner,
        id=answer_id,
        created=created,
        asked=request.model or model,
        model=model,
        metadata=msgspec.json.encode(_pairs(request.metadata)),
        messages=msgspec.json.encode(messages),
        completion=msgspec.json.encode(completion),
    )


def _whole(body: bytes) -> dict[str, Any]:
    """Raises NotWhole, DecodeError."""
    answer = msgspec.json.decode(body)
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
        raise NotWhole("it is no chat completion")
    return answer


def _pairs(metadata: msgspec.Raw) -> dict[str, str]:
    """The metadata that a worker has let pass; a server that is not ours may have done so with other things."""
    given = msgspec.json.decode(metadata)
    if not isinstance(given, dict):
        return {}
    return {name: value for name, value in list(given.items())[:MAX_METADATA] if isinstance(value, str)}
