"""A server between a client and another one, which alters what that answers."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import httpx

from support.wire import Json

_HOP = ("connection", "transfer-encoding", "content-length", "host", "accept-encoding")


@dataclass
class Exchange:
    """A request, and the answer that will be given to it."""

    method: str
    path: str
    asked: Json
    status: int
    content_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith("text/event-stream")

    def change(self, edit: Callable[[Any], object]) -> None:
        """Edit the JSON of a whole answer with status 200."""
        if self.status == 200 and not self.is_stream:
            value = json.loads(self.body)
            edit(value)
            self.body = json.dumps(value).encode()

    def change_chunks(self, edit: Callable[[list[Any]], object]) -> None:
        """Edit the chunks of a stream, in place."""
        if self.is_stream:
            blocks = self.body.decode().removesuffix("\n\n").split("\n\n")
            chunks = [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]
            edit(chunks)
            self.body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"


Alteration = Callable[[Exchange], object]


class AlteringServer:
    """Passes requests on to `url`, streams as a whole, and `alter` changes the answers before they go out."""

    def __init__(self, url: str) -> None:
        self.alter: Alteration = lambda _: None
        outer, client = self, httpx.Client(base_url=url, timeout=60)
        self._client = client

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def _pass(self) -> None:
                data = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                answer = client.request(self.command, self.path, content=data or None, headers=headers)
                try:
                    asked = json.loads(data)
                except ValueError:
                    asked = {}
                exchange = Exchange(
                    self.command,
                    self.path,
                    asked if isinstance(asked, dict) else {},
                    answer.status_code,
                    answer.headers.get("content-type", ""),
                    answer.content,
                )
                outer.alter(exchange)
                self.send_response(exchange.status)
                self.send_header("content-type", exchange.content_type)
                self.send_header("content-length", str(len(exchange.body)))
                for name, value in exchange.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(exchange.body)
                self.wfile.flush()

            do_GET = do_POST = do_DELETE = _pass

            def log_message(self, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._client.close()
