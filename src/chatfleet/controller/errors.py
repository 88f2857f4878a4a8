"""What a controller refuses."""

from chatfleet.core.errors import InvalidRequest, ServingError


class IdMismatch(InvalidRequest):
    """The worker id of the path is not that of the body (400)."""

    code = "worker_id_mismatch"


class ServerRefused(InvalidRequest):
    """A server cannot be registered: it does not answer, is not OpenAI-compatible, or lacks a named model (400)."""

    code = "server_refused"


class WorkerNotFound(ServingError):
    """No worker has this id (404)."""

    status, type, code = 404, "invalid_request_error", "worker_not_found"


class ServerNotFound(ServingError):
    """No server is registered with this URL (404)."""

    status, type, code = 404, "invalid_request_error", "server_not_found"


class FleetFull(ServingError):
    """A bound of the controller is reached (503)."""

    code, status = "fleet_full", 503

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"retry-after": "5"})
