"""What can go wrong with stored completions."""

from chatfleet.core.errors import ServingError


class CompletionNotFound(ServingError):
    """There is no such completion, or it is another key's, which is not told apart (404)."""

    status, type, code = 404, "invalid_request_error", "completion_not_found"

    def __init__(self, completion_id: str, *, param: str | None = None) -> None:
        super().__init__(
            f"No stored chat completion {completion_id[:256]!r} is there. Only those asked for with `store: true` are "
            "kept, each for its API key, and not for ever.",
            param=param,
        )


class StoreUnavailable(ServingError):
    """The database cannot be read or written (503)."""

    status, type, code = 503, "server_error", "store_unavailable"

    def __init__(self) -> None:
        super().__init__("Stored completions cannot be read or changed at the moment. The gateway's log says why.")


class StoreFailure(Exception):
    """The database failed. The message, for the operator, says why and what to do."""


class NotWhole(Exception):
    """An answer is not one that can be kept. The message says why."""
