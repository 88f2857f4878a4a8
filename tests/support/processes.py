"""Real ChatFleet processes on free ports."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

GUARDED = Path(__file__).with_name("guarded.py")
_SERVING = re.compile(r"Serving (?P<models>.+?) on (?P<url>http://\S+?)/v1")


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
            if match := _SERVING.search(line):
                self.url = match["url"]
                self._serving.set()

    @property
    def pid(self) -> int:
        return self._process.pid

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

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)
