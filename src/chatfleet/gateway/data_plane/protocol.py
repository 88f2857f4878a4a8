"""Where requests to models leave the way of all others."""

from typing import Any, Final

from chatfleet.core.errors import InvalidRequest, ServingError
from chatfleet.core.fleet import PRIORITY_HEADER
from chatfleet.gateway.data_plane.forwarded import SCOPE, STORE_OWNER
from chatfleet.gateway.data_plane.heads import Fields, RequestHead, path_of
from chatfleet.gateway.data_plane.idempotency import IDEMPOTENCY_KEY, scope_of
from chatfleet.gateway.data_plane.plane import DataPlane
from chatfleet.gateway.data_plane.request import RelayedRequest
from chatfleet.gateway.endpoints import Endpoint
from chatfleet.http.known_head import MAX_MISSES, KnownHead
from chatfleet.http.protocol import HttpProtocol, Turn
from chatfleet.http.trust import check_single_host
from chatfleet.store.records import owner_of


class GatewayProtocol(HttpProtocol):
    """A client's connection. POSTs to the paths that workers answer are relayed; the rest is the application's."""

    idle_linger_s = 1.0
    serves_half_closed = True

    def __init__(self, plane: DataPlane, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plane = plane
        self._accepted: bytes | None = None  # the last authorization that was right
        self._priority = 0  # of its key
        self._owner = b""  # who sends it
        self._head: RequestHead | None = None  # of the last request that was parsed
        self._known: tuple[KnownHead, RequestHead] | None = None  # one that came whole
        self._misses = 0

    def data_received(self, data: bytes) -> None:
        if not self.is_between_requests():
            super().data_received(data)
            return
        if self._known is not None:
            known, head = self._known
            if (body := known.body_of(data)) is not None:
                self._misses = 0
                request = RelayedRequest(self, self._plane, head)
                self.have_turn(request)
                request.begin_whole(body)
                return
        self._head = None
        super().data_received(data)
        if self._head is not None and self._head.can_be_known and self._misses < MAX_MISSES:
            self._misses += 1
            if (new := KnownHead.of(data)) is not None:
                self._known = new, self._head

    def make_turn(self, version: str) -> Turn | None:
        if self.parser.get_method() != b"POST":
            return None
        plane = self._plane
        endpoint = plane.endpoint(self.url) or plane.endpoint(path_of(self.url))
        if endpoint is None:
            return None
        given = dict(self.headers)
        if len(given) != len(self.headers) and b"connection" in given:
            given[b"connection"] = b",".join(value for name, value in self.headers if name == b"connection")
        self._head = head = RequestHead(
            endpoint,
            self.url,
            given,
            version=version,
            keep_alive=self.parser.should_keep_alive(),
            cors=plane.cors.header_lines(given.get(b"origin"), b"cookie" in given),
            session_header=plane.session_header,
        )
        try:
            if len(given) != len(self.headers) or b"host" not in given:
                check_single_host(self.headers, version)
            self._check_key(given)
            head.priority = self._priority_of(given)
            head.owner = self._owner_of(given)
            head.check_body(given)
            head.scope = self._scope(given, endpoint)
            if head.scope is not None:
                return plane.keyed.turn(self, plane, head)
        except ServingError as exc:
            head.refusal = exc
        return RelayedRequest(self, plane, head)

    def _scope(self, given: Fields, endpoint: Endpoint) -> bytes | None:
        """What the request's Idempotency-Key holds for; None where it has none. Raises InvalidRequest."""
        key = given.get(IDEMPOTENCY_KEY)
        if key is None:
            return None
        if len(given) != len(self.headers) and sum(name == IDEMPOTENCY_KEY for name, _ in self.headers) > 1:
            raise InvalidRequest("The header Idempotency-Key is there more than once. Send one.")
        return scope_of(key, given.get(b"authorization"), endpoint.path)

    def _check_key(self, given: Fields) -> None:
        """Raises InvalidApiKey."""
        keys = self._plane.keys
        if keys is None:
            return
        authorization = given.get(b"authorization")
        if len(given) != len(self.headers) and sum(name == b"authorization" for name, _ in self.headers) > 1:
            authorization = None
        if authorization is None or authorization != self._accepted:
            text = None if authorization is None else authorization.decode("latin-1")
            self._priority = keys.check(text)
            self._owner = owner_of(text)
            self._accepted = authorization

    def _priority_of(self, given: Fields) -> bytes:
        """The header line with the priority that the client's key has."""
        return b"%b: %d\r\n" % (_PRIORITY, self._priority) if self._priority else b""

    def _owner_of(self, given: Fields) -> bytes:
        """Who has the completions that the request stores."""
        return self._owner


_PRIORITY: Final = PRIORITY_HEADER.encode()


class SiblingProtocol(GatewayProtocol):
    """A connection of another gateway process of this host, which has let the client in and says who it is and what
    its Idempotency-Key holds for. Nobody else can reach the socket."""

    def _scope(self, given: Fields, endpoint: Endpoint) -> bytes | None:
        return _digest(given, SCOPE)

    def _priority_of(self, given: Fields) -> bytes:
        return b"%b: %b\r\n" % (_PRIORITY, given[_PRIORITY]) if _PRIORITY in given else b""

    def _owner_of(self, given: Fields) -> bytes:
        return _digest(given, STORE_OWNER)


def _digest(given: Fields, name: bytes) -> bytes:
    """Raises InvalidRequest."""
    try:
        return bytes.fromhex(given[name].decode())
    except (KeyError, ValueError) as exc:
        raise InvalidRequest("This socket is for the gateway's own processes.") from exc
