"""The paths of stored completions: listed, read, given other metadata, deleted."""

import re
from collections.abc import Sequence
from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from chatfleet.core.errors import MethodNotAllowed
from chatfleet.gateway.endpoints import STORED_PATH
from chatfleet.http.body import parse_body, read_body
from chatfleet.http.errors import invalid_request
from chatfleet.http.openapi import ERROR_RESPONSES
from chatfleet.protocol.stored import (
    DeletedCompletion,
    PageQuery,
    StoredCompletion,
    StoredCompletionList,
    StoredCompletionUpdate,
    StoredMessageList,
)
from chatfleet.store.database import Page, Wanted
from chatfleet.store.records import owner_of
from chatfleet.store.store import CompletionStore

_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_ONE: Final = f"{STORED_PATH}/{{completion_id}}"
_METADATA: Final = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_PAGE: Final[tuple[dict[str, Any], ...]] = (
    {"name": "after", "in": "query", "schema": {"type": "string"}, "description": "The last id of the page before."},
    {"name": "limit", "in": "query", "schema": {"type": "integer", "default": 20, "minimum": 1, "maximum": 100}},
    {"name": "order", "in": "query", "schema": {"type": "string", "enum": ["asc", "desc"], "default": "asc"}},
)
_FILTERS: Final[tuple[dict[str, Any], ...]] = (
    {"name": "model", "in": "query", "schema": {"type": "string"}, "description": "As asked for, or as answered."},
    {
        "name": "metadata",
        "in": "query",
        "style": "deepObject",
        "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        "description": "metadata[key]=value, any number of times: only what has all of these.",
    },
)

_UPDATE: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": StoredCompletionUpdate.model_json_schema()}},
    }
}


def make_stored_router(store: CompletionStore, *, with_keys: bool) -> APIRouter:
    """Everyone sees their own only. `with_keys` says that requests come with an API key, which has been checked."""
    router = APIRouter(responses=ERROR_RESPONSES, tags=["Stored completions"])

    def owner(request: Request) -> bytes:
        return owner_of(request.headers.get("authorization") if with_keys else None)

    @router.get(STORED_PATH, response_model=StoredCompletionList, openapi_extra={"parameters": [*_FILTERS, *_PAGE]})
    async def stored_completions(request: Request) -> Response:
        """The completions that were asked for with `store`, the oldest first."""
        wanted = _wanted(request)
        page = _page(request, ["model", *(f"metadata[{key}]" for key in wanted.metadata)])
        return _json(await store.list(owner(request), wanted, page))

    @router.get(_ONE, response_model=StoredCompletion)
    async def stored_completion(completion_id: str, request: Request) -> Response:
        return _json(await store.get(owner(request), completion_id))

    @router.post(_ONE, response_model=StoredCompletion, openapi_extra=_UPDATE)
    async def update_stored_completion(completion_id: str, request: Request) -> Response:
        """Give it other metadata."""
        update = await parse_body(request, await read_body(request), StoredCompletionUpdate, strict=False)
        return _json(await store.update(owner(request), completion_id, update.metadata or {}))

    @router.delete(_ONE)
    async def delete_stored_completion(completion_id: str, request: Request) -> DeletedCompletion:
        await store.delete(owner(request), completion_id)
        return DeletedCompletion(object="chat.completion.deleted", id=completion_id, deleted=True)

    @router.get(f"{_ONE}/messages", response_model=StoredMessageList, openapi_extra={"parameters": [*_PAGE]})
    async def stored_messages(completion_id: str, request: Request) -> Response:
        """The messages of its request, the first one first."""
        page = _page(request)
        return _json(await store.messages(owner(request), completion_id, page))

    _refuse_other_methods(router, STORED_PATH, "GET", "POST")
    _refuse_other_methods(router, _ONE, "DELETE", "GET", "POST")
    return router


def _refuse_other_methods(router: APIRouter, path: str, *allowed: str) -> None:
    """Where a path has several routes, the 405 of starlette names the methods of the first one only."""
    methods = ", ".join(allowed)

    async def refuse(request: Request) -> Response:
        raise MethodNotAllowed(
            f"Not allowed: {request.method} {request.url.path}. Use {methods}.", headers={"allow": methods}
        )

    router.add_api_route(path, refuse, methods=list(_METHODS.difference(allowed)), include_in_schema=False)


def _wanted(request: Request) -> Wanted:
    pairs = request.query_params.multi_items()
    metadata = {found[1]: value for name, value in pairs if (found := _METADATA.fullmatch(name))}
    return Wanted(request.query_params.get("model"), metadata)


def _page(request: Request, known: Sequence[str] = ()) -> Page:
    """The page that is asked for. Parameters that say nothing of it and are not `known` are named as ignored. Raises
    InvalidRequest."""
    given = dict(request.query_params)
    fields = PageQuery.model_fields
    request.state.ignored = [name for name in given if name not in fields and name not in known]
    try:
        query = PageQuery.model_validate({name: value for name, value in given.items() if name in fields})
    except ValidationError as exc:
        raise invalid_request(exc, given) from exc
    return Page(query.after, query.limit, query.order)


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
