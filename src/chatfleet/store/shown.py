"""Stored completions as clients see them: JSON."""

from collections.abc import Sequence
from typing import Any

import msgspec

from chatfleet.store.database import Kept, Page
from chatfleet.store.errors import CompletionNotFound


def completion_json(kept: Kept) -> bytes:
    """A completion, with the metadata that it has now."""
    fields = msgspec.json.decode(kept.completion, type=dict[str, msgspec.Raw])
    fields["metadata"] = msgspec.Raw(kept.metadata)
    return msgspec.json.encode(fields)


def completions_json(page: Sequence[Kept], has_more: bool) -> bytes:
    return _list_json([kept.id for kept in page], [msgspec.Raw(completion_json(kept)) for kept in page], has_more)


def messages_json(completion_id: str, messages: bytes, page: Page) -> bytes:
    """A page of a request's messages, each with an id. Content in parts stands apart from text. Raises
    CompletionNotFound for an unknown `after`."""
    every = [
        _message(completion_id, *one) for one in enumerate(msgspec.json.decode(messages, type=list[dict[str, Any]]))
    ]
    if page.order == "desc":
        every.reverse()
    start = 0
    if page.after is not None:
        start = next((place for place, message in enumerate(every, 1) if message["id"] == page.after), 0)
        if not start:
            raise CompletionNotFound(page.after, param="after")
    shown = every[start : start + page.limit]
    return _list_json([message["id"] for message in shown], shown, start + len(shown) < len(every))


def _message(completion_id: str, number: int, message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    has_parts = isinstance(content, list)
    return {
        "refusal": None,
        "name": None,
        **message,
        "id": f"{completion_id}-{number}",
        "content": None if has_parts else content,
        "content_parts": content if has_parts else None,
    }


def _list_json(ids: Sequence[str], entries: Sequence[Any], has_more: bool) -> bytes:
    """OpenAI's list object, whose first and last id must be texts."""
    first, last = (ids[0], ids[-1]) if ids else ("", "")
    return msgspec.json.encode(
        {"object": "list", "data": entries, "first_id": first, "last_id": last, "has_more": has_more}
    )
