"""The heads that the data plane reads and writes."""

from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

import httptools

from chatfleet import __version__
from chatfleet.core.errors import ServingError
from chatfleet.core.fleet import WorkerInfo
from chatfleet.gateway.endpoints import Endpoint
from chatfleet.http.body import MAX_BODY_BYTES, check_media_type, too_large
from chatfleet.http.middleware import REQUEST_ID, ignored_value

JSON_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
)
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
PROCESSING: Final = b"HTTP/1.1 102 Processing\r\n\r\n"

HOPS: Final = b"x-chatfleet-hops"
"""How many gateways a request has come through: one may be the worker of another, and by mistake of itself."""

_TO_WORKER: Final = (b"traceparent", b"tracestate")
"""The headers of a client that reach a worker; all others are the gateway's own."""

IDEMPOTENT_REPLAYED: Final = b"idempotent-replayed: true\r\n"
"""Of an answer that another request with the same Idempotency-Key was the first to ask for."""

SMALL_BODY_BYTES: Final = 64 * 1024

Fields = dict[bytes, bytes]


class RequestHead:
    """What the head of a request says, read once for all requests of a connection that have the same.

    `priority` is the header line that says so to workers of ours, where its key has one.
    `refusal` is why it is refused, if it is. `to_worker` are header lines for the worker, `trace` those among them that
    are the client's, `cors` those of the answer. `scope` is what its Idempotency-Key holds for, where it has one.
    `owner` is who has the completions that it stores.
    """

    __slots__ = (
        "cors",
        "endpoint",
        "expects_continue",
        "forwarded_for",
        "hops",
        "is_small",
        "keep_alive",
        "owner",
        "path",
        "priority",
        "refusal",
        "request_id",
        "scope",
        "session",
        "to_worker",
        "trace",
        "understands_chunks",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        url: bytes,
        given: Fields,
        *,
        version: str,
        keep_alive: bool,
        cors: bytes,
        session_header: bytes,
    ) -> None:
        self.endpoint = endpoint
        self.path = url.decode("latin-1")
        self.understands_chunks = version != "1.0"
        self.keep_alive = keep_alive and self.understands_chunks
        self.cors = cors
        self.refusal: ServingError | None = None
        self.scope: bytes | None = None
        self.priority = self.owner = b""
        request_id = given.get(b"x-request-id")
        self.request_id = request_id if request_id and REQUEST_ID.fullmatch(request_id) else None
        self.session = given.get(session_header)
        self.forwarded_for = given.get(b"x-forwarded-for")
        self.expects_continue = self.understands_chunks and given.get(b"expect", b"").lower() == b"100-continue"
        self.hops = _hops_of(given)
        self.trace = b""
        for name in _TO_WORKER:
            if name in given and name not in _hop_by_hop(given):
                self.trace += b"%b: %b\r\n" % (name, given[name])
        self.to_worker = b"%b: %d\r\n%b" % (HOPS, self.hops + 1, self.trace)
        declared = given.get(b"content-length")
        self.is_small = declared is not None and int(declared) <= SMALL_BODY_BYTES

    @property
    def can_be_known(self) -> bool:
        """Whether the next request with the same head may be taken without parsing it."""
        return self.refusal is None and self.scope is None and self.keep_alive and not self.expects_continue

    def check_body(self, given: Fields) -> None:
        """Raises UnsupportedMediaType, PayloadTooLarge."""
        if given.get(b"content-type") != b"application/json" or b"content-encoding" in given:
            check_media_type(
                given.get(b"content-type", b"").decode("latin-1"), given.get(b"content-encoding", b"").decode("latin-1")
            )
        if int(given.get(b"content-length", 0)) > MAX_BODY_BYTES:
            raise too_large()


def worker_head(worker: WorkerInfo, path: str, token: str | None) -> bytes:
    """What every request to a path of a worker begins with."""
    url = urlsplit(worker.url)
    key = token if worker.kind == "chatfleet" else worker.api_key
    lines = [
        f"POST {url.path}{path} HTTP/1.1",
        f"host: {url.netloc}",
        *([] if key is None else [f"authorization: Bearer {key}"]),
        "content-type: application/json",
        f"user-agent: chatfleet/{__version__}",
    ]
    return "".join(f"{line}\r\n" for line in lines).encode()


def ignored_header(names: Iterable[str]) -> bytes:
    """The header line that names the request's fields which nobody heeded."""
    return b"x-chatfleet-ignored: %b\r\n" % ignored_value(names).encode("latin-1", "replace")


def path_of(url: bytes) -> bytes:
    """The path of a request target in any of its forms; empty where there is none."""
    try:
        return unquote_to_bytes(httptools.parse_url(url).path or b"")
    except httptools.HttpParserInvalidURLError:
        return b""


def _hop_by_hop(given: Fields) -> list[bytes]:
    """The headers that a message calls its connection's own (RFC 9110, 7.6.1)."""
    return [name.strip().lower() for name in given.get(b"connection", b"").split(b",")]


def _hops_of(given: Fields) -> int:
    value = given.get(HOPS, b"")
    return int(value) if value.isdigit() and len(value) < 3 else 0
