"""Requests to the server that is examined, and its answers as they are: bytes, headers, events."""

import asyncio
import json
import os
import shlex
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp

from chatfleet.core.errors import ChatFleetError

MAX_ANSWER_BYTES: Final = 32 * 2**20
_RETRIES: Final = 2
_RETRY_WAIT_S: Final = 2.0
_SHOWN_BODY_CHARS: Final = 2000
_CONNECT_TIMEOUT_S: Final = 10.0
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
"""What TLS makes of a server that speaks plain http."""

Json = dict[str, Any]


class Failed(ChatFleetError):
    """The server does not do what the reference says. The message is the reason."""


class Unsupported(ChatFleetError):
    """The server says that it does not do this, or its model cannot show whether it does. The message is the reason."""


class Unreachable(ChatFleetError):
    """No answer can be had of the server at all."""


@dataclass(frozen=True)
class Request:
    method: str
    url: str
    body: bytes | None

    def as_curl(self, key_variable: str | None) -> str:
        """The request for a shell. The key is taken from that environment variable; None is no key. A long body is
        cut."""
        parts = ["curl", "-sS"]
        if self.method not in ("GET", "POST") or (self.method == "POST" and self.body is None):
            parts += ["-X", self.method]
        parts.append(shlex.quote(self.url))
        if key_variable is not None:
            parts.append(f'-H "authorization: Bearer ${key_variable}"')
        if self.body is not None:
            text = self.body.decode("utf-8", "replace")
            if len(text) > _SHOWN_BODY_CHARS:
                text = f"{text[:_SHOWN_BODY_CHARS]}... ({len(text)} characters)"
            parts += ["-H 'content-type: application/json'", "-d", shlex.quote(text)]
        return " ".join(parts)


@dataclass(frozen=True)
class Answer:
    """A whole answer. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def json(self) -> Any:
        """Raises Failed unless the body is JSON and says so."""
        try:
            value = json.loads(self.body)
        except ValueError:
            raise Failed(f"The answer, with status {self.status}, is no JSON: {self.start()}") from None
        if self.content_type != "application/json":
            raise Failed(f"The answer is JSON, and its content type is {self.content_type or 'missing'}.")
        return value

    def error_message(self) -> str:
        """What it says of what went wrong, in whatever form; empty where it says nothing."""
        return self._error_part("message")

    def error_param(self) -> str:
        return self._error_part("param")

    def _error_part(self, name: str) -> str:
        try:
            found = json.loads(self.body)
        except ValueError:
            return ""
        error = found.get("error", found) if isinstance(found, dict) else None
        if isinstance(error, str) and name == "message":
            return error
        value = None
        if isinstance(error, dict):
            value = error.get(name) or (error.get("detail") if name == "message" else None)
        return value if isinstance(value, str) else "" if value is None else json.dumps(value)

    def start(self) -> str:
        """Its beginning on one line, to be shown."""
        text = " ".join(self.body[:300].decode("utf-8", "replace").split())
        return "".join(char if char.isprintable() else "?" for char in text) or "(empty)"


def events_of(answer: Answer) -> list[str]:
    """The data of each server-sent event. Raises Failed unless the body is a whole event stream of UTF-8."""
    if answer.content_type != "text/event-stream":
        raise Failed(f"A stream has the content type text/event-stream, not {answer.content_type or 'none'}.")
    try:
        text = answer.body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise Failed(f"The stream is not UTF-8: {exc}.") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.endswith("\n\n"):
        raise Failed(f"The stream ends in the middle of an event: {text[-100:]!r}")
    events: list[str] = []
    for block in text.split("\n\n"):
        data: list[str] = []
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
            elif name not in ("", "event", "id", "retry"):
                raise Failed(f"There is a line in the stream that is no part of an event: {line[:200]!r}")
        if data:
            events.append("\n".join(data))
    return events


class Client:
    """One server, and the model that is asked of it: empty until it is known. Use it as a context manager.

    `key_variable` is the environment variable that has the key, or should have it.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        key_variable: str = "OPENAI_API_KEY",
        timeout_s: float = 60.0,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.with_key = api_key is not None
        self.key_variable = key_variable
        self.timeout_s = timeout_s
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._verify = verify
        self._session: aiohttp.ClientSession | None = None

    def request(self, method: str, path: str, body: bytes | None = None) -> Request:
        """`path` below the base URL, such as /models, or from the server's root when it begins with two slashes."""
        base = self.base_url
        if path.startswith("//"):
            parts = urlsplit(self.base_url)
            base, path = f"{parts.scheme}://{parts.netloc}", path[1:]
        return Request(method, base + path, body)

    async def send(self, request: Request) -> Answer:
        """The whole answer, at most `timeout_s` later. One that says to come back later (429, 503) is asked again.

        Raises Failed when there is none, and Unreachable when there is no connection.
        """
        answer = await self._send(request)
        for _ in range(_RETRIES):
            if answer.status not in (429, 503):
                break
            await asyncio.sleep(_wait_s(answer))
            answer = await self._send(request)
        return answer

    async def leave(self, request: Request) -> None:
        """Read the beginning of an answer, and close the connection. Raises as `send` does."""
        with self._faults():
            async with asyncio.timeout(self.timeout_s), self._answer(request) as response:
                await response.content.readany()
                response.close()

    async def _send(self, request: Request) -> Answer:
        with self._faults():
            async with asyncio.timeout(self.timeout_s), self._answer(request) as response:
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > MAX_ANSWER_BYTES:
                        raise Failed(f"The answer is larger than {MAX_ANSWER_BYTES >> 20} MB.")
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, headers, bytes(body))

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except aiohttp.ConnectionTimeoutError as exc:
            raise Unreachable(f"No connection is made within {self._connect_timeout_s:g} s.") from exc
        except TimeoutError:
            raise Failed(f"There is no whole answer after {self.timeout_s:g} s.") from None
        except aiohttp.ClientConnectorError as exc:
            raise Unreachable(_why_unreachable(exc)) from exc
        except aiohttp.InvalidURL as exc:
            raise Unreachable("The URL is none.") from exc
        except aiohttp.ServerDisconnectedError as exc:
            hint = " It may want https." if self.base_url.startswith("http:") else ""
            raise Failed(f"The server closes the connection and answers nothing.{hint}") from exc
        except aiohttp.ClientError as exc:
            raise Failed(f"The answer breaks off or is no HTTP: {exc or type(exc).__name__}.") from exc

    @property
    def _connect_timeout_s(self) -> float:
        return min(self.timeout_s, _CONNECT_TIMEOUT_S)

    def _answer(self, request: Request) -> "aiohttp.client._RequestContextManager":
        assert self._session is not None, "use it as a context manager"
        headers = {} if request.body is None else {"content-type": "application/json"}
        verify = True if self._verify is None else self._verify
        return self._session.request(
            request.method, request.url, data=request.body, headers=headers, ssl=verify, allow_redirects=False
        )

    async def __aenter__(self) -> Self:
        # A connection for each request: a kept one that the server has closed meanwhile would look like a fault of it.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()


def _why_unreachable(exc: aiohttp.ClientConnectorError) -> str:
    error = exc.os_error
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return f"The name {exc.host} is not known: {error.strerror or error}."
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"Its certificate is not trusted here: {error.verify_message}. Set SSL_CERT_FILE to a file with it, or "
            "with whoever signed it."
        )
    if isinstance(error, ssl.SSLError):
        if error.reason in _NO_TLS:
            return "It speaks plain http at that port, and not https: try http://."
        return f"No TLS connection can be made: {error.reason or error}."
    return f"No connection can be made: {os.strerror(error.errno) if error.errno else error}."


def _wait_s(answer: Answer) -> float:
    try:
        return min(max(float(answer.headers.get("retry-after", "0.5")), 0.1), _RETRY_WAIT_S)
    except ValueError:
        return _RETRY_WAIT_S
