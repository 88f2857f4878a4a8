"""A Hugging Face hub on loopback: the few paths that fetching a repository needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[str]:
    """Serve `repositories` (id -> file name -> content) at the yielded URL, for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *arguments: Any) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0].strip("/")
            for repo_id, files in repositories.items():
                if path.startswith(f"api/models/{repo_id}"):
                    answer: Any = [
                        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in files.items()
                    ]
                    if "/tree/" not in path:
                        siblings = [{"rfilename": name} for name in files]
                        answer = {"id": repo_id, "sha": COMMIT, "siblings": siblings, "private": False}
                    self._send(200, json.dumps(answer).encode(), with_body, {"content-type": "application/json"})
                    return
                prefix = f"{repo_id}/resolve/"
                name = path.removeprefix(prefix).partition("/")[2]
                if path.startswith(prefix) and name in files:
                    etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
                    self._send(200, files[name], with_body, {"ETag": etag, "X-Repo-Commit": COMMIT})
                    return
            self._send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})

        def _send(self, status: int, body: bytes, with_body: bool, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
