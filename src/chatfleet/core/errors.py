"""The one error tree. Raised anywhere, rendered in one place as OpenAI's error object.

Source of the form and of the types and codes: OpenAI's API reference, "Error codes".
"""

from collections.abc import Iterable
from typing import Final

_SHOWN_MODELS: Final = 20


class ChatFleetError(Exception):
    """Base of every error that ChatFleet raises on purpose. The message is for a person."""


class ConfigurationError(ChatFleetError):
    """A component cannot start as it was configured. The CLI prints the message and exits with 2."""


class ServingError(ChatFleetError):
    """An error that a client of the API sees.

    `status` is the HTTP status, `type` and `code` are OpenAI's, `param` names the request field at
    fault (dotted and indexed, such as `messages[0].content`), `headers` go out with the response.
    `should_retry`, where it is not None, goes out as x-should-retry, which OpenAI's clients obey: without it they send
    408, 409, 429 and all of 5xx again.
    """

    status: int = 500
    type: str = "server_error"
    code: str | None = None
    should_retry: bool | None = None

    def __init__(self, message: str, *, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        if self.should_retry is not None:
            self.headers.setdefault("x-should-retry", str(self.should_retry).lower())


class InvalidRequest(ServingError):
    """The request is malformed or out of range (400)."""

    status, type = 400, "invalid_request_error"


def model_list(names: Iterable[str]) -> str:
    """Model names as messages show them; many are cut short."""
    quoted = [f"`{name}`" for name in names]
    shown = ", ".join(quoted[:_SHOWN_MODELS])
    return shown if len(quoted) <= _SHOWN_MODELS else f"{shown} and {len(quoted) - _SHOWN_MODELS} more"


class UnsupportedParameter(InvalidRequest):
    """A field we know, with a value that the engine or model cannot honour (400)."""

    code = "unsupported_parameter"


class UnknownParameter(InvalidRequest):
    """A field nobody knows, under --strict (400)."""

    code = "unknown_parameter"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and completion do not fit the context (400)."""

    code = "context_length_exceeded"

    def __init__(
        self,
        *,
        prompt_tokens: int,
        max_tokens: int | None,
        context_length: int,
        param: str,
        at_least: bool = False,
    ) -> None:
        completion = "" if max_tokens is None else f" and {max_tokens} for the completion"
        remedy = f"Shorten the {param}" + ("." if max_tokens is None else " or lower max_tokens.")
        super().__init__(
            f"This model's maximum context length is {context_length} tokens, but you asked for "
            f"{'at least ' if at_least else ''}{prompt_tokens} tokens in the {param}{completion}. {remedy}",
            param=param,
        )


class InvalidApiKey(ServingError):
    """The API key is missing or wrong (401)."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"www-authenticate": "Bearer"})


class ModelNotFound(ServingError):
    """No such model here (404). The message names what is served."""

    status, type, code = 404, "invalid_request_error", "model_not_found"

    def __init__(self, requested: str, served: Iterable[str], *, alias_of: str | None = None) -> None:
        model = f"`{requested}`" if alias_of is None else f"`{alias_of}`, which `{requested}` stands for,"
        super().__init__(f"The model {model} does not exist here. Served: {model_list(served)}.", param="model")


class PathNotFound(ServingError):
    """No such path (404)."""

    status, type, code = 404, "invalid_request_error", "unknown_url"


class MethodNotAllowed(ServingError):
    """The path exists, the method does not (405)."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class PayloadTooLarge(ServingError):
    """The body is over the limit (413)."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class HeadersTooLarge(ServingError):
    """The request line and headers are over the limit (431)."""

    status, type, code = 431, "invalid_request_error", "headers_too_large"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"The request line and headers are larger than {max_bytes // 1024} KB.")


class RequestTimeout(ServingError):
    """The request did not arrive in time (408)."""

    status, type, code = 408, "invalid_request_error", "request_timeout"


class UnsupportedMediaType(ServingError):
    """The body is not what the path takes (415)."""

    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class Misdirected(ServingError):
    """The Host header names another server (421)."""

    status, type, code = 421, "invalid_request_error", "unknown_host"


class QueueFull(ServingError):
    """Too many requests wait already (429). `retry_after_ms` is when there may be room."""

    status, type, code = 429, "rate_limit_error", "queue_full"
    should_retry = True

    def __init__(self, message: str, *, retry_after_ms: int = 1000) -> None:
        seconds = -(-retry_after_ms // 1000)
        super().__init__(message, headers={"retry-after-ms": str(retry_after_ms), "retry-after": str(seconds)})


class TooManyRequests(QueueFull):
    """A gateway has as many requests on their way as it takes (429)."""

    code = "too_many_requests"


class IdempotencyKeyReused(ServingError):
    """The key was used for another body (422)."""

    status, type, code = 422, "invalid_request_error", "idempotency_key_reused"
    should_retry = False


class IdempotentAnswerGone(ServingError):
    """The answer to the first request with this key is not kept any more (409)."""

    status, type, code = 409, "invalid_request_error", "idempotent_answer_gone"
    should_retry = False


class IdempotencyUnavailable(ServingError):
    """Nobody is there who could answer a request with an Idempotency-Key just once (503). `is_passing` says that it is
    worth trying again."""

    status, type, code = 503, "server_error", "idempotency_unavailable"

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message, headers={"x-should-retry": str(is_passing).lower()})


class InternalError(ServingError):
    """A fault of ours (500). The message never carries internals."""

    code = "internal_error"


class EngineError(ServingError):
    """The engine failed this request (500)."""

    code = "engine_error"


class EngineCrashed(EngineError):
    """The engine process died or was stuck with this request in it (500)."""

    code = "engine_crashed"


class EngineUnavailable(ServingError):
    """The engine is starting, restarting or gone (503)."""

    status, type, code = 503, "server_error", "engine_unavailable"


class NoWorker(ServingError):
    """The model is known, and no worker of it is there now (503)."""

    status, type, code = 503, "server_error", "no_worker_available"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"retry-after": "2"})


class WorkerFailed(ServingError):
    """A worker could not be reached, broke off, or did not speak HTTP (502)."""

    status, type, code = 502, "server_error", "worker_failed"


class WorkerUnreachable(WorkerFailed):
    """No connection to a worker could be made: it has seen nothing of the request (502)."""


class ConnectTimeout(WorkerUnreachable):
    """No connection to a worker came about in time (504)."""

    status, code = 504, "connect_timeout"


class WorkerBrokeOff(WorkerFailed):
    """A worker ended its connection before its answer: it may have died, and of this request (502)."""


class WorkerCrashed(WorkerFailed):
    """Workers died with this request in them, once too often: it is given to no other (500)."""

    status, code = 500, "worker_crashed"
    should_retry = False


class FirstEventTimeout(WorkerFailed):
    """The answer did not begin in time (504)."""

    status, code = 504, "first_event_timeout"
    should_retry = False


class StreamStalled(WorkerFailed):
    """A stream fell silent for too long (504)."""

    status, code = 504, "stream_stalled"


class TotalTimeout(ServingError):
    """The request took longer than any may (504)."""

    status, type, code = 504, "server_error", "total_timeout"
    should_retry = False


class LoopDetected(ServingError):
    """The request has come through too many gateways: one is probably a worker of its own (508)."""

    status, type, code = 508, "server_error", "loop_detected"
    should_retry = False


class WorkerRefused(ServingError):
    """A worker's own error, passed on with the status and the codes that it gave."""

    def __init__(
        self, message: str, *, status: int, type: str, param: str | None, code: str | None, headers: dict[str, str]
    ) -> None:
        super().__init__(message, param=param, headers=headers)
        self.status, self.type, self.code = status, type, code


class ShuttingDown(ServingError):
    """The server ends before the request does (503)."""

    status, type, code = 503, "server_error", "shutting_down"

    def __init__(self) -> None:
        super().__init__("The server is shutting down. Try again shortly, or elsewhere.")
