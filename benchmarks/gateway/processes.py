"""Servers as child processes: started on given cores, awaited, and ended whatever happens."""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from machine import CannotRun, require

READY_S = 120.0
"""How long a server may take to start: LiteLLM imports for half a minute on a slow machine."""

_END_S = 10.0
_LOG_TAIL_CHARS = 2000


class ServerProcess:
    """A command pinned to cores, in a session of its own so that Ctrl-C reaches the comparison only.

    What it prints goes to `log_file`.
    """

    def __init__(
        self,
        name: str,
        command: Iterable[str],
        cores: Iterable[int],
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log_file = folder / f"{name.replace(' ', '-')}.log"
        taskset = require("taskset", "It comes with util-linux: apt install util-linux.")
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [taskset, "-c", ",".join(map(str, cores)), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**_without_our_settings(), **(environment or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def require_alive(self) -> None:
        status = self._process.poll()
        if status is not None:
            raise CannotRun(f"{self.name} has ended (status {status}). It said:\n{self.log()[-_LOG_TAIL_CHARS:]}")

    def until(self, is_ready: Callable[[], bool], what: str, patience_s: float = READY_S) -> None:
        """Wait for it. Raises CannotRun when the process ends before, or takes too long."""
        deadline = time.monotonic() + patience_s
        while not is_ready():
            self.require_alive()
            if time.monotonic() > deadline:
                raise CannotRun(
                    f"{self.name}: {what} did not come in {patience_s:.0f} s. It said:\n{self.log()[-_LOG_TAIL_CHARS:]}"
                )
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, and whatever it has started."""
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _without_our_settings() -> dict[str, str]:
    """The environment without settings of ChatFleet, which are the comparison's to make."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("CHATFLEET_")}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def get_json(port: int, path: str, headers: Mapping[str, str] | None = None) -> Any:
    """The JSON of an answer; None when there is no server, or its answer is no success."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        body = response.read()
        return json.loads(body) if response.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def post_succeeds(port: int, path: str, body: Any, headers: Mapping[str, str]) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json", **headers})
        response = connection.getresponse()
        response.read()
        return response.status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
