"""Who may call: bearer keys where there are any, and what protects a server without them from web pages."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from chatfleet.core.access import is_loopback
from chatfleet.core.errors import InvalidApiKey, InvalidRequest, Misdirected
from chatfleet.http.body import require_json

OPEN_PATHS = frozenset({"/health", "/ready"})
_SAFE_METHODS = frozenset({"GET", "HEAD"})


class Keys:
    """Bearer keys, each with the priority of its requests, kept as hashes and compared in constant time. `name` is what
    messages call one."""

    def __init__(self, keys: Mapping[str, int], name: str = "API key") -> None:
        self._name = name
        self._known = [(hashlib.sha256(key.encode()).digest(), priority) for key, priority in keys.items()]

    def _priority(self, key: str) -> int | None:
        """None where the key is not known."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = [hmac.compare_digest(digest, known) for known, _ in self._known]  # a list: no early end
        return self._known[found.index(True)][1] if any(found) else None

    def check(self, authorization: str | None) -> int:
        """The priority of the key's requests. Raises InvalidApiKey unless the header's value is `Bearer` and one of the
        keys."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise InvalidApiKey(f"This needs the {self._name}. Send it as 'Authorization: Bearer ...'.")
        if (priority := self._priority(key.strip())) is None:
            raise InvalidApiKey(f"The {self._name} is not known here. Check it, and that it is meant for this server.")
        return priority


class KeyGuard:
    """Lets requests with a key pass; only `OPEN_PATHS` need none."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = Headers(scope=scope).getlist("authorization")
            self._keys.check(given[0] if len(given) == 1 else None)
        await self._app(scope, receive, send)


class KnownHost:
    """For a server without keys: only calls by a name of this machine, or by `host`.

    Else a web page whose domain is pointed at 127.0.0.1 would be of the same origin as this server.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._host = host.strip("[]").lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            name = host_name(Headers(scope=scope).getlist("host"))
            if not is_loopback(name) and name != self._host:
                raise Misdirected(f"The Host {name[:128]!r} is not known here. Use 127.0.0.1 or localhost.")
        await self._app(scope, receive, send)


class JsonMutations:
    """Whatever may change something must say that it is JSON, which a page of another site cannot do without a CORS
    preflight."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _SAFE_METHODS:
            require_json(Headers(scope=scope).get("content-type", ""))
        await self._app(scope, receive, send)


class SingleHost:
    """Refuses requests without exactly one Host header (RFC 9112, 3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            check_single_host(scope["headers"], scope["http_version"])
        await self._app(scope, receive, send)


def check_single_host(headers: Iterable[tuple[bytes, bytes]], http_version: str) -> None:
    """Raises InvalidRequest unless there is exactly one Host (RFC 9112, 3.2)."""
    count = sum(name == b"host" for name, _ in headers)
    if count > 1 or (count == 0 and http_version != "1.0"):
        raise InvalidRequest(f"A request must have exactly one Host header; this one has {count}.")


def host_name(values: list[str]) -> str:
    """The Host without its port, lower case; empty unless there is exactly one."""
    if len(values) != 1:
        return ""
    value = values[0].strip().lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0]


def add_guard(app: Starlette, *, token: str | None, host: str) -> None:
    """Let in only who has the fleet's token; where there is none, only who calls this machine, or `host`, by name."""
    if token is None:
        app.add_middleware(KnownHost, host=host)
    else:
        app.add_middleware(KeyGuard, keys=Keys({token: 0}, "fleet token"))
