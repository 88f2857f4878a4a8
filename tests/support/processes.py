"""Real ChatFleet processes on free ports."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

GUARDED = Path(__file__).with_name("guarded.py")
_ANNOUNCED = re.compile(r"Serving .+? on (https?://\S+?)/v1|(?:Controller|Gateway) on (https?://[^\s,]+)")


class CommandProcess:
    """`chatfleet COMMAND ...` as a process: `url` once it serves, `output` all that it printed."""

    def __init__(self, *arguments: str, ready_s: float = 60.0, env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(GUARDED), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb", **(env or {})},
        )
        self._lines: list[str] = []
        self._serving = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        deadline = time.monotonic() + ready_s
        while not self._serving.wait(0.05):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"it does not serve:\n{self.output}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if not self.url and (match := _ANNOUNCED.search(line)):
                self.url = match[1] or match[2]
                self._serving.set()

    @property
    def pid(self) -> int:
        return self._process.pid

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        """Send a signal, wait for the end, return the exit status."""
        if self.alive():
            self._process.send_signal(number)
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        self._reader.join(timeout=5)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class WorkerProcess(CommandProcess):
    """`chatfleet worker` on a free port."""

    def __init__(self, *arguments: str, ready_s: float = 60.0, env: dict[str, str] | None = None) -> None:
        super().__init__("worker", "--port", "0", *arguments, ready_s=ready_s, env=env)


class ControllerProcess(CommandProcess):
    """`chatfleet controller`, on a free port unless one is given."""

    def __init__(self, *arguments: str, port: int = 0, env: dict[str, str] | None = None) -> None:
        super().__init__("controller", "--port", str(port), *arguments, env=env)


class GatewayProcess(CommandProcess):
    """`chatfleet gateway` on a free port. Made once `models` can be asked through it; `api_key` is what its clients
    send."""

    def __init__(
        self,
        *arguments: str,
        controllers: Sequence[CommandProcess],
        models: Collection[str] = (),
        api_key: str | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        urls = [option for controller in controllers for option in ("--controller-url", controller.url)]
        super().__init__("gateway", "--port", "0", *urls, *arguments, env=env)
        self.until_served(models)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, headers=self._headers)

    def served(self) -> set[str]:
        """The names that can be asked for."""
        with self.http() as http:
            return {card["id"] for card in http.get("/v1/models").json()["data"]}

    def until_served(self, models: Collection[str]) -> None:
        deadline = time.monotonic() + 60
        while not set(models) <= self.served():
            if time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"it does not serve {models}:\n{self.output}")
            time.sleep(0.02)


class FleetEndpoint(GatewayProcess):
    """A worker behind a gateway, to be used as the worker alone would be."""

    def __init__(self, *worker_arguments: str) -> None:
        with ExitStack() as parts:
            controller = parts.enter_context(ControllerProcess())
            arguments = ("--controller-url", controller.url, *worker_arguments)
            self._worker = parts.enter_context(WorkerProcess(*arguments))
            with self._worker.http() as http:
                models = [card["id"] for card in http.get("/v1/models").json()["data"]]
            super().__init__(controllers=[controller], models=models)
            self._parts = parts.pop_all()

    @property
    def output(self) -> str:
        return super().output + self._worker.output

    def alive(self) -> bool:
        return super().alive() and self._worker.alive()

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        with self._parts:
            return super().stop(number, timeout_s)


THROUGH = ["worker", "gateway"]
"""The ways to an endpoint: what clients see must hold for both."""

Endpoint = CommandProcess
"""What serves the API: a worker alone, or a gateway before one."""


def endpoint(through: str, *worker_arguments: str) -> Endpoint:
    """A worker, reached directly or through a gateway."""
    return WorkerProcess(*worker_arguments) if through == "worker" else FleetEndpoint(*worker_arguments)
