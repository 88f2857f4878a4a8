"""Stored completions: the paths below /v1/chat/completions."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from chatfleet.protocol.chat import ChatCompletion, Metadata
from chatfleet.protocol.common import RequestModel, WireModel


class StoredCompletionUpdate(RequestModel):
    metadata: Metadata | None


class PageQuery(BaseModel):
    """Which part of a list is wanted: what comes behind the entry called `after`."""

    after: str | None = None
    limit: int = Field(default=20, ge=1, le=100)
    order: Literal["asc", "desc"] = "asc"


class StoredCompletion(ChatCompletion):
    """With what its request asked for."""

    metadata: dict[str, str]
    request_id: str
    tools: list[dict[str, Any]] | None
    tool_choice: str | dict[str, Any] | None
    response_format: dict[str, Any] | None
    seed: int | None
    temperature: float | None
    top_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    input_user: str | None


class StoredCompletionList(WireModel):
    object: Literal["list"]
    data: list[StoredCompletion]
    first_id: str
    last_id: str
    has_more: bool


class StoredMessage(WireModel):
    """A message of a request. One whose content came in parts has these, and no `content`."""

    id: str
    role: str
    content: str | None
    content_parts: list[dict[str, Any]] | None
    name: str | None
    refusal: str | None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StoredMessageList(WireModel):
    object: Literal["list"]
    data: list[StoredMessage]
    first_id: str
    last_id: str
    has_more: bool


class DeletedCompletion(WireModel):
    object: Literal["chat.completion.deleted"]
    id: str
    deleted: bool
