"""Reading a server's answers as clients do: events, error objects, and plain bytes on a socket."""

import json
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

PATIENCE_S = 60.0
"""How long a test waits for what should come in milliseconds: tests run on busy machines."""

Json = dict[str, Any]


def user(content: str) -> list[Json]:
    """The messages of a conversation that has just begun."""
    return [{"role": "user", "content": content}]


def events(body: str | bytes) -> list[str]:
    """The data of every server-sent event; fails on anything else in the stream."""
    text = body.decode() if isinstance(body, bytes) else body
    assert text.endswith("\n\n"), f"the stream ends in the middle of an event: {text[-200:]!r}"
    blocks = text.removesuffix("\n\n").split("\n\n")
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks), blocks
    return [block.removeprefix("data: ") for block in blocks]


def chunks(response: httpx.Response) -> list[Json]:
    """The chunks of a stream that went well."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    *data, last = events(response.content)
    assert last == "[DONE]"
    return [json.loads(item) for item in data]


def chat_texts(parts: Sequence[Json]) -> dict[int, str]:
    """The text of every choice of a chat stream."""
    texts: dict[int, str] = {}
    for choice in (choice for part in parts for choice in part["choices"]):
        texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return texts


def completion_texts(parts: Sequence[Json]) -> dict[int, str]:
    """The text of every choice of a completion stream."""
    texts: dict[int, str] = {}
    for choice in (choice for part in parts for choice in part["choices"]):
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


def error_object(body: str | bytes) -> Json:
    """OpenAI's error object; fails on any other form."""
    parsed = json.loads(body)
    assert list(parsed) == ["error"], parsed
    error: Json = parsed["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str) and error["message"], error
    assert isinstance(error["type"], str), error
    assert error["param"] is None or (isinstance(error["param"], str) and error["param"]), error
    assert error["code"] is None or isinstance(error["code"], str), error
    return error


def failed(response: httpx.Response, status: int, *, param: str | None = None, code: str | None = None) -> Json:
    """The error of a response that failed as it should."""
    assert response.status_code == status, (response.status_code, response.text[:2000])
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = error_object(response.content)
    if param is not None:
        assert error["param"] == param, error
    if code is not None:
        assert error["code"] == code, error
    return error


_FRAMING = ("content-length", "transfer-encoding")


@dataclass(frozen=True, slots=True)
class RawResponse:
    status: int
    headers: dict[str, str]
    body: bytes


class RawConnection:
    """A socket to a server, for what no HTTP client would send."""

    def __init__(self, url: str, *, timeout_s: float = PATIENCE_S) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self.sock = socket.create_connection((parts.hostname, parts.port), timeout=timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.sock.makefile("rb")

    def send(self, data: bytes) -> Self:
        self.sock.sendall(data)
        return self

    def post(self, path: str, body: Json | bytes, *headers: str) -> Self:
        """Send a whole request."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send(head("POST", path, f"content-length: {len(content)}", *headers) + content)

    def read_response(self, method: str = "POST") -> RawResponse:
        """One whole response; others that are pipelined behind it stay unread. Heads of 102, which say that the
        request is being worked on, are passed over."""
        status, headers = self.read_head()
        while status == 102:
            status, headers = self.read_head()
        if method == "HEAD" or status in (204, 304):
            return RawResponse(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return RawResponse(status, headers, b"".join(self.read_chunks()))
        if "content-length" in headers:
            return RawResponse(status, headers, self._exactly(int(headers["content-length"])))
        return RawResponse(status, headers, self.rest())

    def read_responses(self) -> list[RawResponse]:
        """Whole responses up to the end of the connection."""
        responses = []
        while self._file.peek(1):
            responses.append(self.read_response())
        return responses

    def read_head(self) -> tuple[int, dict[str, str]]:
        status_line = self._line()
        assert status_line.startswith("HTTP/1.1 "), status_line
        headers: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.partition(":")
            assert name.lower() not in headers or name.lower() not in _FRAMING, f"two of {name}"
            headers[name.lower()] = value.strip()
        assert not set(headers).issuperset(_FRAMING), f"two framings: {headers}"
        return int(status_line.split(" ")[1]), headers

    def read_chunks(self) -> Iterator[bytes]:
        """The chunks of a chunked body as they come, to its end."""
        while size := int(self._line(), 16):
            yield self._exactly(size)
            assert self._line() == ""
        assert self._line() == ""

    def at_end(self) -> bool:
        """Whether the server has closed the connection, which this waits for."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True

    def rest(self) -> bytes:
        """All that is left to come before the server ends the connection; fails when it resets it."""
        return self._file.read()

    def end_sending(self) -> Self:
        """Say that nothing more will be sent, and still read."""
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def reset(self) -> None:
        """Drop the connection with a RST, as a client does that is killed or has unread data."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def _line(self) -> str:
        line = self._file.readline()
        assert line.endswith(b"\r\n"), f"the connection ended inside {line!r}"
        return line[:-2].decode("latin-1")

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        assert len(data) == size, f"the connection ended after {len(data)} of {size} bytes"
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def head(method: str, path: str, *headers: str) -> bytes:
    """A request's head, with what every request of ours has."""
    given = "\r\n".join(("host: localhost", "content-type: application/json", *headers))
    return f"{method} {path} HTTP/1.1\r\n{given}\r\n\r\n".encode("latin-1")
