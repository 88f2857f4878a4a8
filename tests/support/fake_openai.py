"""An OpenAI-compatible server that is none of ours: as much of it as controllers and gateways ask."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Answer = tuple[int, dict[str, str], bytes]
Reply = Callable[[Callable[[bytes], object]], object]


def http_answer(
    body: bytes,
    *headers: str,
    status: int = 200,
    content_type: str = "application/json",
    connection: str = "close",
) -> bytes:
    """A whole answer, as it goes over the wire."""
    framing = (f"content-type: {content_type}", f"content-length: {len(body)}", f"connection: {connection}")
    lines = (f"HTTP/1.1 {status} X", *framing, *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def stream_head(*headers: str, connection: str = "close") -> bytes:
    """The head of a chunked event stream."""
    framing = ("content-type: text/event-stream", "transfer-encoding: chunked", f"connection: {connection}")
    lines = ("HTTP/1.1 200 OK", *framing, *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def stream_chunk(data: bytes) -> bytes:
    """A chunk of it; the empty one is its end."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def model_entry(model_id: str, **fields: object) -> dict[str, Any]:
    return {"id": model_id, "object": "model", "created": 1700000000, "owned_by": "stranger", **fields}


class FakeOpenAI:
    """Lists `models` at /v1/models, to those with `api_key` where there is one.

    `answer`, where set, is what it answers instead; while `open` is clear, it takes requests and answers none. It can
    be stopped and started again on its port. `requests` are the headers that came, and `bodies` what was posted:
    `reply` answers that, by writing whatever it wants on the connection, which is closed then.
    """

    def __init__(self, *models: dict[str, Any] | str, api_key: str | None = None) -> None:
        self.models = [model_entry(model) if isinstance(model, str) else model for model in models]
        self.api_key = api_key
        self.answer: Answer | None = None
        self.open = threading.Event()
        self.open.set()
        self.requests: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.reply: Reply = lambda write: write(http_answer(b"{}"))
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.requests.append({name.lower(): value for name, value in self.headers.items()})
                fake.open.wait()
                status, headers, body = fake.answer or fake._list(self.path, self.headers.get("authorization"))
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                fake.requests.append({name.lower(): value for name, value in self.headers.items()})
                fake.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.close_connection = True
                fake.reply(self.wfile.write)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away is no news."""

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        server, thread = self._server, self._thread
        self._server = self._thread = None
        self.open.set()
        if server is not None and thread is not None:
            server.shutdown()
            server.server_close()
            thread.join()

    def _list(self, path: str, authorization: str | None) -> Answer:
        if path != "/v1/models":
            return 404, {}, b"{}"
        if self.api_key is not None and authorization != f"Bearer {self.api_key}":
            return 401, {}, json.dumps({"error": f"{authorization} is wrong"}).encode()
        return 200, {"content-type": "application/json"}, json.dumps({"object": "list", "data": self.models}).encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
